"""SAM-affine looked at again: embeddings of what both volumes show, as it lies under the first map.

Embeddings see half of the body, so they say something else of a place where a scan ends nearby, and what one
volume does not show is matched to its end. Therefore the moving volume is resampled under the first map, both are
cut to the heights that they have in common, embedded and matched with neighbors, and the most probable map is
fitted (see `alignment.prior_fit`). Where little is common, a first map that is wrong by two centimeters leaves
ends that do not correspond. Neighbors agree best where they do, so what lies on each other is shifted along the
body until then. The result is a mean of both looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..alignment import Alignment, from_matches
from ..alignment.feature_alignment import CORE_RADIUS_MM, FeatureAlignment, body_grid, core_weights
from ..alignment.prior_fit import fit_of, fit_with_prior
from ..alignment.refinement import Model
from ..alignment.robust_fit import fit_transform, plausible
from ..alignment.volumes import PreparedImage
from ..errors import InputError
from ..features.base import FeatureExtractor, Features
from ..grid import FloatArray, Grid
from ..image import Image
from ..matching import FeatureIndex, StructuralMatches, indexed, match_structurally
from ..sampling import Interpolation, sample, voxel_mesh
from ..transforms import AffineTransform
from .aligned_matching import covering_grid
from .heights import Heights, cut, cut_grid, heights
from .sam_affine import aligned_volume

POINTS = 300
END_MM = 15.0
"""Matches so close to an end of what is common may be pulled there."""

LARGEST_END_SHARE = 0.15
LEAST_COMMON_MM = 40.0

MOSTLY_COMMON = 0.75
"""Of both bodies' heights; where less is common, the cut itself is looked for."""

LARGEST_DISTANCE_MM = 30.0
"""Between what two maps make of the matched points, for their mean to be better than either."""

STEP_MM = 12.0
MOST_STEPS = 4
LEAST_GAIN = 0.03
"""A step must lessen the neighbors' disagreement by such a share: less is chance."""

_SPARE_MM = 10.0
"""A volume that goes no further than this beyond what is common is not cut."""


@dataclass(frozen=True)
class Trust:
    """How far the second look is trusted.

    Args:
        worth: of a match for the map, see `fit_with_prior`: what fits a part exactly need not hold elsewhere.
        core: radius in mm of what counts around the body's axis.
        weight: of the second map in the mean of both looks.
    """

    worth: float
    core: float
    weight: float


WHOLE = Trust(worth=1.0, core=57.0, weight=0.85)
PART = Trust(worth=1 / 15, core=CORE_RADIUS_MM, weight=1 / 2)


def look_again(
    fixed: Image,
    moving: Image,
    extractor: FeatureExtractor,
    fixed_features: Features,
    found: Alignment,
    *,
    model: str = "affine",
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
) -> Alignment:
    """Improve an alignment by embeddings of the common part of the aligned volumes.

    Args:
        fixed: with axes along L, P, S.
        moving: any volume.
        extractor: of embeddings with a coarse map.
        fixed_features: of the whole fixed volume.
        found: what to begin with.
        model: "affine", "similarity", "rigid" or "translation".
        fixed_mask: (z, y, x) bool on the fixed grid, where to look.
        moving_mask: (z, y, x) bool on the moving grid.
        seed: of everything random.

    Returns:
        The alignment that the matches agree on; `found` where too few agree on any, or little is common.
    """
    wanted = Model(model)
    if wanted is Model.TRANSLATION or fixed_features.coarse is None:
        return found
    prepared = PreparedImage.of(fixed, fixed_mask), PreparedImage.of(moving, moving_mask)
    pair = _Pair(fixed, moving, fixed_features, *(image.regions.body_image for image in prepared))

    def looked(up: float) -> _Seen | None:
        place = found.transform.compose(AffineTransform.translation([0.0, 0.0, up]))
        look = _look(place, pair, extractor)
        return None if look is None else look.fitted(wanted, seed)

    best = looked(0.0)
    if best is not None and not best.mostly_common:
        best = _best_cut(best, looked)
    if best is None:
        return found
    try:
        both = _between(found.transform, best.fit, best.trust.weight)
        return from_matches(both, *prepared, seed)
    except InputError:
        return found


@dataclass(frozen=True, eq=False)
class _Pair:
    """What every look begins with.

    Args:
        fixed: with axes along L, P, S.
        moving: any volume.
        features: of the whole fixed volume.
        fixed_body: 1 where to look, 0 elsewhere.
        moving_body: the same of the moving volume.
    """

    fixed: Image
    moving: Image
    features: Features
    fixed_body: Image
    moving_body: Image

    @cached_property
    def index(self) -> FeatureIndex:
        """Of the whole fixed volume, where it is not cut."""
        return indexed(self.features, self.fixed_body)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a look led to.

    Args:
        fit: the most probable map and its matches.
        disagreement: median distance in mm of the neighbors' matches from what their point says.
        mostly_common: whether nearly all that either volume shows was looked at.
    """

    fit: FeatureAlignment
    disagreement: float
    mostly_common: bool

    @property
    def trust(self) -> Trust:
        """By how much of the bodies was looked at."""
        return _trust(self.mostly_common)


def _best_cut(first: _Seen, looked: Callable[[float], _Seen | None]) -> _Seen:
    """The look after which neighbors agree best, shifting what lies on each other up or down step by step."""
    best = first
    for direction in (1, -1):
        for step in range(1, MOST_STEPS + 1):
            seen = looked(direction * step * STEP_MM)
            if seen is None or seen.disagreement >= (1 - LEAST_GAIN) * best.disagreement:
                break
            best = seen
        if best is not first:
            break
    return best


def _trust(mostly_common: bool) -> Trust:
    return WHOLE if mostly_common else PART


def _between(first: AffineTransform, second: FeatureAlignment, weight: float) -> FeatureAlignment:
    """The mean of both maps, whose errors differ; the second alone where they are too far apart for that."""
    points, fit = second.matches.points, second.fit
    ends = first.transform_points(points), fit.transform.transform_points(points)
    if np.linalg.norm(ends[0] - ends[1], axis=1).mean() > LARGEST_DISTANCE_MM:
        return second
    mean = AffineTransform((1 - weight) * first.matrix + weight * fit.transform.matrix)
    if fit.model is not Model.AFFINE:
        # The mean of two turns is no turn.
        mean = fit_transform(points, mean.transform_points(points), None, fit.model)
    both = fit_of(mean, fit.model, points, second.matches.matched)
    return replace(second, fit=both, stiff=mean)


@dataclass(frozen=True, eq=False)
class _Look:
    """The common part of both volumes, embedded.

    Args:
        place: the map under which the moving volume was resampled.
        points: (n, 3) in the common part of the fixed body.
        fixed: what is searched in the fixed volume.
        aligned: what is searched in the moving volume, in the fixed world.
        common: the heights that both show.
        mostly_common: whether that is most of what either shows.
    """

    place: AffineTransform
    points: FloatArray
    fixed: FeatureIndex
    aligned: FeatureIndex
    common: Heights
    mostly_common: bool

    def fitted(self, model: Model, seed: int) -> _Seen | None:
        """The most probable map to moving world; None where too few matches agree on a plausible one."""
        trust = _trust(self.mostly_common)
        with torch.no_grad():
            found = match_structurally(self.points, self.fixed, self.aligned)
        matches = found.select(_clear_of_ends(found, self.common))
        weights = np.clip(matches.score, 1e-2, 1) * np.clip(matches.support, 1e-2, 1)
        weights = weights * core_weights(matches.points, trust.core)
        moved = replace(matches, matched=self.place.transform_points(matches.matched))
        try:
            fit = fit_with_prior(moved.points, moved.matched, weights, model, seed, trust.worth)
        except InputError:
            return None
        again = FeatureAlignment(fit, moved, len(moved), fit.transform)
        if not again.reliable or not plausible(fit.transform):
            return None
        return _Seen(again, float(np.median(found.residual)), self.mostly_common)


def _look(place: AffineTransform, pair: _Pair, extractor: FeatureExtractor) -> _Look | None:
    """Both volumes cut to what they have in common under a map; None where that is next to nothing."""
    grid = covering_grid(pair.moving, place, pair.fixed)
    body = _as_it_lies(pair.moving_body, place, grid)
    if not bool(body.data.any()) or not bool(pair.fixed_body.data.any()):
        return None
    shown = heights(pair.fixed_body), heights(body)
    common = max(lower for lower, _ in shown), min(upper for _, upper in shown)
    length = common[1] - common[0]
    if length < LEAST_COMMON_MM:
        return None
    if shown[0][0] < common[0] - _SPARE_MM or shown[0][1] > common[1] + _SPARE_MM:
        index = FeatureIndex(extractor.extract(cut(pair.fixed, common)), pair.fixed_body)
    else:
        index = pair.index
    aligned = aligned_volume(pair.moving, place, cut_grid(grid, common)[0])
    longest = max(upper - lower for lower, upper in shown)
    return _Look(
        place,
        body_grid(cut(pair.fixed_body, common), most=POINTS),
        index,
        FeatureIndex(extractor.extract(aligned), body),
        common,
        length >= MOSTLY_COMMON * longest,
    )


def _as_it_lies(body: Image, place: AffineTransform, grid: Grid) -> Image:
    """A body of the moving volume under a map, on voxels of its own size over a grid of the fixed world."""
    coarse = grid.resampled(max(min(body.grid.spacing), *grid.spacing))
    mesh = voxel_mesh(coarse.shape, body.grid.world_to_voxel @ place.matrix @ coarse.voxel_to_world)
    inside = sample(body.tensor(), mesh, Interpolation.NEAREST)[0, 0]
    return Image(inside, coarse)


def _clear_of_ends(matches: StructuralMatches, common: Heights) -> NDArray[np.bool_]:
    end = min(END_MM, LARGEST_END_SHARE * (common[1] - common[0]))
    levels = np.stack([matches.points[:, 2], matches.matched[:, 2]])
    return np.asarray(((levels > common[0] + end) & (levels < common[1] - end)).all(axis=0))
