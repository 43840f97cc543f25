"""What two volumes have in common, as the moving one lies under a map: cut to it, embedded, matched and fitted.

Embeddings see half of the body, so they say something else of a place where one volume shows what the other does
not. Therefore both are cut to the heights that they share. The moving volume may be bent before: a smooth field
through trusted matches precedes the linear map then.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ..alignment import PlacedFeatures
from ..alignment.feature_alignment import CORE_RADIUS_MM, FeatureAlignment, body_grid, core_weights
from ..alignment.prior_fit import WORTH_IN_A_PART, fit_with_prior
from ..alignment.refinement import Model
from ..alignment.robust_fit import plausible
from ..errors import InputError
from ..features.base import FeatureExtractor, Features
from ..field import DisplacementField
from ..grid import FloatArray, Grid
from ..image import Image
from ..matching import Consensus, FeatureIndex, StructuralMatches, indexed, match_structurally
from ..sampling import Interpolation
from ..transforms import AffineTransform, CompositeTransform, Transform, transform_points
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

_SPARE_MM = 10.0
"""A volume that goes no further than this beyond what is common is not cut."""

_BEND_SPACING_MM = 10.0
"""Of the grid on which a bend is given; it changes little within 25 mm."""


@dataclass(frozen=True)
class Trust:
    """How far a look is trusted.

    Args:
        worth: of a match for the map, see `fit_with_prior`.
        core: radius in mm of what counts around the body's axis.
        weight: of its map in the mean with the first one.
    """

    worth: float
    core: float
    weight: float


WHOLE = Trust(worth=1.0, core=57.0, weight=0.85)
PART = Trust(worth=WORTH_IN_A_PART, core=CORE_RADIUS_MM, weight=1 / 2)


@dataclass(frozen=True, eq=False)
class LookedAt:
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
class Seen:
    """What a look led to.

    Args:
        matches: to moving world, clear of the ends of what is common.
        fit: the most probable map.
        disagreement: median distance in mm of the neighbors' matches from what their point says.
        mostly_common: whether nearly all that either volume shows was looked at.
        embedded: the moving volume's features, where it was not bent.
    """

    matches: StructuralMatches
    fit: FeatureAlignment
    disagreement: float
    mostly_common: bool
    embedded: PlacedFeatures | None = None

    @property
    def trust(self) -> Trust:
        """By how much of the bodies was looked at."""
        return trust_in(self.mostly_common)

    @cached_property
    def bend(self) -> Consensus:
        """What the matches that the map meets say beyond it, as a field in the fixed world."""
        agreeing = self.matches.select(self.fit.fit.inliers)
        in_fixed = self.fit.fit.transform.inverse().transform_points(agreeing.matched)
        return Consensus(replace(agreeing, matched=in_fixed))

    @property
    def bending_mm(self) -> float:
        """How far matches nearby agree to lie beside the map: the root of the mean square over the body."""
        points = self.bend.matches.points
        squared = np.square(self.bend.predict(points) - points).sum(axis=1)
        return float(np.sqrt(np.average(squared, weights=weights_of(self.bend.matches, self.trust))))


def trust_in(mostly_common: bool) -> Trust:
    """How far a look at most of the bodies, or at a part of them, is trusted."""
    return WHOLE if mostly_common else PART


def weights_of(matches: StructuralMatches, trust: Trust) -> FloatArray:
    """(n,) how much each match counts for a map of the body."""
    weights = np.clip(matches.score, 1e-2, 1) * np.clip(matches.support, 1e-2, 1)
    return np.asarray(weights * core_weights(matches.points, trust.core))


def fitted(matches: StructuralMatches, trust: Trust, model: Model, seed: int) -> FeatureAlignment | None:
    """The most probable map to moving world; None where too few matches agree on a plausible one."""
    weights = weights_of(matches, trust)
    try:
        fit = fit_with_prior(matches.points, matches.matched, weights, model, seed, trust.worth)
    except InputError:
        return None
    found = FeatureAlignment(fit, matches, len(matches))
    return found if found.reliable and plausible(fit.transform) else None


def joined(first: StructuralMatches, second: StructuralMatches) -> StructuralMatches:
    """The matches of both."""
    return StructuralMatches(
        *(np.concatenate([getattr(first, each.name), getattr(second, each.name)]) for each in fields(first))
    )


def look(
    place: AffineTransform,
    pair: LookedAt,
    extractor: FeatureExtractor,
    model: Model,
    seed: int,
    bend: Consensus | None = None,
) -> Seen | None:
    """Match what both volumes show under a map, and fit the most probable one.

    Args:
        place: the linear map.
        pair: the volumes.
        extractor: of the embeddings.
        model: what is free.
        seed: of the fit.
        bend: how the moving volume, as it lies under the linear map, is bent before.

    Returns:
        None where next to nothing is common, or too few matches agree on a plausible map.
    """
    grid = covering_grid(pair.moving, place, pair.fixed)
    under: Transform = place if bend is None else CompositeTransform([_field(bend, grid), place])
    # A body is mapped on voxels about as large as its own.
    coarse = grid.resampled(max(min(pair.moving_body.grid.spacing), *grid.spacing))
    body = aligned_volume(pair.moving_body, under, coarse, Interpolation.NEAREST, 0)
    if not bool(body.data.any()) or not bool(pair.fixed_body.data.any()):
        return None
    shown = heights(pair.fixed_body), heights(body)
    common = max(lower for lower, _ in shown), min(upper for _, upper in shown)
    length = common[1] - common[0]
    if length < LEAST_COMMON_MM:
        return None
    if shown[0][0] < common[0] - _SPARE_MM or shown[0][1] > common[1] + _SPARE_MM:
        fixed = FeatureIndex(extractor.extract(cut(pair.fixed, common)), pair.fixed_body)
    else:
        fixed = pair.index
    lying = aligned_volume(pair.moving, under, cut_grid(grid, common)[0])
    features = extractor.extract(lying)
    aligned = FeatureIndex(features, body)
    points = body_grid(cut(pair.fixed_body, common), most=POINTS)
    with torch.no_grad():
        found = match_structurally(points, fixed, aligned)
    matches = found.select(_clear_of_ends(found, common))
    matches = replace(matches, matched=transform_points(under, matches.matched))
    mostly_common = length >= MOSTLY_COMMON * max(upper - lower for lower, upper in shown)
    fit = fitted(matches, trust_in(mostly_common), model, seed)
    if fit is None:
        return None
    embedded = PlacedFeatures(features, place) if bend is None else None
    return Seen(matches, fit, float(np.median(found.residual)), mostly_common, embedded)


def _field(bend: Consensus, grid: Grid) -> DisplacementField:
    """A bend on a grid of the fixed world."""
    coarse = grid.resampled(_BEND_SPACING_MM)
    z, y, x = (steps.ravel() for steps in np.indices(coarse.shape))
    points = coarse.to_world(np.stack([x, y, z], axis=1))
    shift = (bend.predict(points) - points).T.reshape(1, 3, *coarse.shape)
    return DisplacementField(torch.from_numpy(shift).float(), coarse).resampled(grid)


def _clear_of_ends(matches: StructuralMatches, common: Heights) -> NDArray[np.bool_]:
    end = min(END_MM, LARGEST_END_SHARE * (common[1] - common[0]))
    levels = np.stack([matches.points[:, 2], matches.matched[:, 2]])
    return np.asarray(((levels > common[0] + end) & (levels < common[1] - end)).all(axis=0))
