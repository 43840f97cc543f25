"""SAM-affine looked at again: embeddings of what both volumes show, as it lies under the first map.

The moving volume is resampled under the first map; what it has in common with the fixed one is embedded and
matched with neighbors, and the most probable map is fitted (see `common_part` and `alignment.prior_fit`). Where
little is common, a first map that is wrong by two centimeters leaves ends that do not correspond. Neighbors agree
best where they do, so what lies on each other is shifted along the body until then. The result is a mean of both
looks.

Where most is common and the matches agree that the body is bent against an affine map, as with a head laid back, a
third look follows: the moving volume is bent as they say, embedded and matched once more, and the map is fitted to
the matches of both looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from ..alignment import Alignment, from_matches
from ..alignment.feature_alignment import FeatureAlignment
from ..alignment.prior_fit import fit_of
from ..alignment.refinement import Model
from ..alignment.robust_fit import fit_transform
from ..alignment.volumes import PreparedImage
from ..errors import InputError
from ..features.base import FeatureExtractor, Features
from ..image import Image
from ..transforms import AffineTransform
from .common_part import LookedAt, Seen, fitted, joined, look

LARGEST_DISTANCE_MM = 30.0
"""Between what two maps make of the matched points, for their mean to be better than either."""

LEAST_BENDING_MM = 5.0
"""Where people lie less bent against each other, a third look says what the second said."""

STEP_MM = 12.0
MOST_STEPS = 4
LEAST_GAIN = 0.03
"""A step must lessen the neighbors' disagreement by such a share: less is chance."""


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
    pair = LookedAt(fixed, moving, fixed_features, *(image.regions.body_image for image in prepared))

    def looked(up: float) -> Seen | None:
        place = found.transform.compose(AffineTransform.translation([0.0, 0.0, up]))
        return look(place, pair, extractor, wanted, seed)

    best = looked(0.0)
    if best is not None and not best.mostly_common:
        best = _best_cut(best, looked)
    if best is None:
        return found
    result = _third_look(best, pair, extractor, wanted, seed)
    if result is None:
        result = _between(found.transform, best.fit, best.trust.weight)
    try:
        again = from_matches(result, *prepared, seed)
    except InputError:
        return found
    # Of volumes cut to a small common part the rest has to be embedded as well.
    return replace(again, embedded=best.embedded if best.mostly_common else None)


def _best_cut(first: Seen, looked: Callable[[float], Seen | None]) -> Seen:
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


def _third_look(
    seen: Seen, pair: LookedAt, extractor: FeatureExtractor, model: Model, seed: int
) -> FeatureAlignment | None:
    """The map that this look and one at the bent volume agree on; None where it is not bent, or they do not."""
    # A stiffer map leaves stretch over, which is no bending.
    if model is not Model.AFFINE or not seen.mostly_common or seen.bending_mm < LEAST_BENDING_MM:
        return None
    bent = look(seen.fit.fit.transform, pair, extractor, model, seed, seen.bend)
    return None if bent is None else fitted(joined(seen.matches, bent.matches), seen.trust, model, seed)


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
    return replace(second, fit=both)
