"""SAM-affine: points inside the body, matched by embeddings, and a robust fit (SAME, section 2.2; SAME++)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..features.base import Features
from ..image import Image
from ..matching import FeatureIndex, Matches, stable_matches
from .refinement import Model
from .robust_fit import Fit, robust_fit

GRID_MM = 16.0
"""Distance of the matched points: 8 voxels of 2 mm in the paper."""

MOST_POINTS = 1500
WELL_SUPPORTED = 40
"""Inliers from which on the embeddings alone are trusted."""

_RELIABLE_SHARE = 0.35
_LOWEST_SCORE_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class FeatureAlignment:
    """A fit with the matches it rests on.

    Args:
        fit: the map and its inliers among the matches.
        matches: the stable matches.
        sampled: number of points that were looked up.
    """

    fit: Fit
    matches: Matches
    sampled: int

    @property
    def inlier_share(self) -> float:
        return float(self.fit.inliers.mean())

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
    first, second = FeatureIndex(fixed, fixed_body), FeatureIndex(moving, moving_body)
    matches = stable_matches(points, first, second)
    if len(matches) > 5:
        matches = matches.select(matches.score >= np.quantile(matches.score, _LOWEST_SCORE_SHARE))
    fit = robust_fit(matches.points, matches.matched, np.clip(matches.score, 1e-3, None), model, seed=seed)
    return FeatureAlignment(fit, matches, len(points))


def body_grid(body: Image, spacing: float = GRID_MM, most: int = MOST_POINTS) -> np.ndarray:
    """World positions (n, 3) of a regular grid inside the body, wider spaced where that is too many."""
    volume = float((body.data > 0.5).sum()) * body.grid.voxel_volume
    spacing = max(spacing, (volume / most) ** (1 / 3))
    grid = body.grid.resampled(spacing)
    steps = [np.arange(n) for n in grid.size]
    points = grid.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3))
    x, y, z = np.rint(body.grid.to_voxel(points)).astype(int).clip(0, np.asarray(body.grid.size) - 1).T
    return points[body.data.cpu().numpy()[z, y, x] > 0.5]
