"""SAM-affine: points inside the body, matched by embeddings, and a robust fit (SAME, section 2.2; SAME++)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..features.base import Features
from ..grid import FloatArray
from ..image import Image
from ..matching import Matches, indexed, stable_matches
from .prior_fit import WORTH_IN_A_PART, fit_with_prior
from .refinement import Model
from .robust_fit import Fit, robust_fit

GRID_MM = 16.0
"""Distance of the matched points: 8 voxels of 2 mm in the paper."""

MOST_POINTS = 800
WELL_SUPPORTED = 40
"""Inliers from which on the embeddings alone are trusted."""

TOLERANCE_MM = 20.0
CORE_RADIUS_MM = 80.0

_LEVEL_MM = 30.0
_RELIABLE_SHARE = 0.55
"""Of people as they lie in scanners 0.7 to 1 of the matches agree, of a patient turned by a quarter 0.3 to 0.4."""
_LOWEST_SCORE_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class FeatureAlignment:
    """A fit with the matches it rests on.

    Args:
        fit: the map and its inliers among the matches.
        matches: the stable matches that can have a partner.
        stable: number of all stable matches.
    """

    fit: Fit
    matches: Matches
    stable: int

    @property
    def inlier_share(self) -> float:
        """Of all stable matches."""
        return float(self.fit.inliers.sum()) / max(self.stable, 1)

    @property
    def reliable(self) -> bool:
        """Whether enough matches agree to do without a second opinion."""
        return int(self.fit.inliers.sum()) >= WELL_SUPPORTED and self.inlier_share >= _RELIABLE_SHARE


def align_features(
    fixed: Features, moving: Features, fixed_body: Image, moving_body: Image, model: Model, seed: int = 0
) -> FeatureAlignment:
    """Match a grid of points of the fixed body in the moving body and fit a map.

    Of the stable matches the fifth with the lowest similarity is left out, whatever the scale of the scores of
    these weights is (the paper's constant of 0.7 belongs to its own weights).

    Args:
        fixed: features of the fixed volume.
        moving: features of the moving volume.
        fixed_body: 1 inside the body, 0 outside, with its geometry.
        moving_body: the same of the moving volume.
        model: the most that may be fitted.
        seed: of the robust fit.

    Raises:
        InputError: if too few matches agree on any map.
    """
    points = body_grid(fixed_body)
    first, second = indexed(fixed, fixed_body), indexed(moving, moving_body)
    matches = stable_matches(points, first, second)
    if len(matches) > 5:
        matches = matches.select(matches.score >= np.quantile(matches.score, _LOWEST_SCORE_SHARE))
    stable = len(matches)
    weights = _weights(matches)
    fit = robust_fit(matches.points, matches.matched, weights, model, TOLERANCE_MM, seed=seed)
    possible = _possible(matches, fit, fixed_body, moving_body)
    if not possible.all() and int((fit.inliers & possible).sum()) >= WELL_SUPPORTED:
        matches = matches.select(possible)
        weights = weights[possible]
        fit = robust_fit(matches.points, matches.matched, weights, model, TOLERANCE_MM, seed=seed)
    return FeatureAlignment(fit, matches, stable)


def with_prior(found: FeatureAlignment, model: Model, seed: int = 0) -> FeatureAlignment:
    """The most probable map that the same matches agree on, which goes less astray beyond a small common part.

    The one found where no prior applies.
    """
    if model is Model.TRANSLATION:
        return found
    matches = found.matches
    try:
        fit = fit_with_prior(matches.points, matches.matched, _weights(matches), model, seed, WORTH_IN_A_PART)
    except InputError:
        return found
    return replace(found, fit=fit)


def _weights(matches: Matches) -> FloatArray:
    """(n,) how much each match counts."""
    return np.asarray(np.clip(matches.score, 1e-3, None) * core_weights(matches.points))


def _possible(matches: Matches, fit: Fit, fixed_body: Image, moving_body: Image) -> NDArray[np.bool_]:
    """Which points have their true partner inside both volumes, as far as a first fit can tell.

    A point beyond the end of the other scan is matched to that end, where many such matches pull on the fit.
    """
    there = moving_body.grid.contains(fit.transform.transform_points(matches.points))
    back = fixed_body.grid.contains(fit.transform.inverse().transform_points(matches.matched))
    return there & back


def core_weights(points: FloatArray, radius: float = CORE_RADIUS_MM) -> FloatArray:
    """Less for points far from the body's axis: shoulders and arms move, and matter less than what lies within.

    Args:
        points: (n, 3) in world mm.
        radius: in mm, where the weight has fallen to 1/e.

    Returns:
        (n,) between 0 and 1: a Gaussian of the distance, in the axial plane, from the mean of the points of about
        the same height.
    """
    height = points[:, 2:]
    level = np.exp(-0.5 * np.square((height - height.T) / _LEVEL_MM))
    axis = level @ points[:, :2] / level.sum(axis=1, keepdims=True)
    return np.exp(-np.square(points[:, :2] - axis).sum(axis=1) / radius**2)


def size_of(body: Image) -> float:
    """Of a volume that is 1 inside a body and 0 elsewhere, in cubic mm."""
    return float((body.data > 0.5).sum()) * body.grid.voxel_volume


def body_grid(body: Image, spacing: float = GRID_MM, most: int = MOST_POINTS) -> np.ndarray:
    """World positions (n, 3) of a regular grid inside the body, wider spaced where that is too many."""
    spacing = max(spacing, (size_of(body) / most) ** (1 / 3))
    grid = body.grid.resampled(spacing)
    steps = [np.arange(n) for n in grid.size]
    points = grid.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3))
    x, y, z = np.rint(body.grid.to_voxel(points)).astype(int).clip(0, np.asarray(body.grid.size) - 1).T
    return points[body.data.cpu().numpy()[z, y, x] > 0.5]
