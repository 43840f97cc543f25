"""The linear alignment of two volumes: by embeddings where there are any, by intensities, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..features.base import Features
from ..image import Image
from ..matching import Matches
from ..transforms import AffineTransform
from .checks import doubts
from .feature_alignment import TOLERANCE_MM, WELL_SUPPORTED, FeatureAlignment, align_features, with_prior
from .intensity_alignment import IntensityAligner, IntensityAlignment
from .placed_features import PlacedFeatures
from .refinement import Model
from .volumes import PreparedImage

WELL_OVERLAPPING = 0.6
"""A map that rests on a smaller common part is carried far beyond it."""

SAME_BODY = 0.9
"""Score from which on two volumes show one body: people reach 0.65 to 0.82, phases of breathing 0.94 to 0.97."""

CONFIRMING_SHARE = 0.3
"""Of the matches; as many may agree by chance, but not with what intensities find to be alike as well."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A linear map between two volumes.

    Args:
        transform: from fixed to moving world.
        model: "translation", "rigid", "similarity" or "affine": what the data supported.
        inliers: matched points that agree with it; None where it was found by intensities.
        score: how alike the volumes are under it: correlation (two CTs) or shared information (else), weighed by
            the square root of the common part of the smaller body.
        method: "features" or "intensities".
        warnings: sentences about what makes the alignment doubtful.
        reliable: whether enough matched points agreed on one map, or fewer on the one that intensities found.
        embedded: features of the moving volume that it was found by, where they serve again.
    """

    transform: AffineTransform
    model: str
    inliers: int | None
    score: float
    method: str
    warnings: list[str]
    reliable: bool = False
    embedded: PlacedFeatures | None = None


def align(
    fixed: Image,
    moving: Image,
    fixed_features: Features | None = None,
    moving_features: Features | None = None,
    model: str = "affine",
    initial: AffineTransform | None = None,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
) -> Alignment:
    """Find the linear map under which two volumes show the same anatomy at the same place.

    Needs no start and no common field of view. With embeddings, stable matches are fitted robustly; where that
    rests on a small common part, what is known of people counts as well. Where too few matches agree, or without
    embeddings, the volumes are searched by intensities; the better map by a measure that knows nothing of features
    is kept then. The result does not depend on how the volumes are stored.

    Args:
        fixed: any volume.
        moving: any volume.
        fixed_features: embeddings of the fixed volume with a coarse (global) map; others are ignored.
        moving_features: of the moving volume, from the same extractor.
        model: "affine", "similarity", "rigid" or "translation".
        initial: where to begin; then only its neighborhood is searched.
        fixed_mask: (z, y, x) bool on the fixed grid, where to look.
        moving_mask: (z, y, x) bool on the moving grid.
        seed: of everything random.

    Raises:
        InputError: if no plausible alignment is found.
        ValueError: for an unknown model.
    """
    wanted = Model(model)
    prepared = PreparedImage.of(fixed, fixed_mask), PreparedImage.of(moving, moving_mask)
    aligner = IntensityAligner(*prepared, seed)
    by_features = None
    if fixed_features is not None and moving_features is not None and fixed_features.coarse is not None:
        by_features = _match(prepared, fixed_features, moving_features, wanted, seed)
    if by_features is not None and by_features.reliable:
        if not _well_overlapping(by_features, aligner):
            by_features = with_prior(by_features, wanted, seed)
        return _from_features(by_features, aligner)
    if initial is not None:
        found = aligner.improve([initial], wanted)
    else:
        starts = [] if by_features is None else [by_features.fit.transform]
        found = aligner.align(wanted, starts)
    if by_features is not None and aligner.judged(by_features.fit.transform).score > found.score:
        return _from_features(by_features, aligner)
    alignment = _from_intensities(found, wanted, aligner)
    confirmed = (
        by_features is not None and not alignment.warnings and confirms(by_features.matches, found.transform)
    )
    return replace(alignment, reliable=confirmed)


def agreement(
    fixed: Image,
    moving: Image,
    fixed_features: Features,
    moving_features: Features,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
) -> float:
    """The share of stable matches that agree on one similarity; 0 where they are too few to rely on."""
    prepared = PreparedImage.of(fixed, fixed_mask), PreparedImage.of(moving, moving_mask)
    found = _match(prepared, fixed_features, moving_features, Model.SIMILARITY, seed)
    return found.inlier_share if found is not None and found.reliable else 0.0


def judge(
    fixed: Image,
    moving: Image,
    transform: AffineTransform,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
) -> float:
    """The score of any map between two volumes, comparable with the score of their alignment."""
    prepared = PreparedImage.of(fixed, fixed_mask), PreparedImage.of(moving, moving_mask)
    return IntensityAligner(*prepared, seed).judged(transform).score


def from_matches(found: FeatureAlignment, fixed: PreparedImage, moving: PreparedImage, seed: int = 0) -> Alignment:
    """The alignment that a fit to matches is, with its score and what makes it doubtful.

    Raises:
        InputError: if the volumes hardly overlap under it.
    """
    return _from_features(found, IntensityAligner(fixed, moving, seed))


def improved_on_same_body(
    found: Alignment,
    fixed: Image,
    moving: Image,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
) -> Alignment:
    """A map found by features, improved by intensities where the volumes look so alike that they show one body.

    Between people what looks most alike does not belong together, and features know better. On one body edges say
    more exactly where it lies, above all along a limb, where features hardly change.
    """
    if found.method != "features" or found.score < SAME_BODY:
        return found
    aligner = IntensityAligner(PreparedImage.of(fixed, fixed_mask), PreparedImage.of(moving, moving_mask), seed)
    improved = aligner.improve([found.transform], Model(found.model))
    if improved.score < SAME_BODY:
        return found
    return replace(found, transform=improved.transform, score=improved.score)


def _well_overlapping(found: FeatureAlignment, aligner: IntensityAligner) -> bool:
    return aligner.judged(found.fit.transform).overlap >= WELL_OVERLAPPING


def confirms(matches: Matches, transform: AffineTransform) -> bool:
    """Whether many stable matches, perhaps too few to be believed alone, say what intensities found as well."""
    residuals = np.linalg.norm(transform.transform_points(matches.points) - matches.matched, axis=1)
    agreeing = int((residuals < 1.5 * TOLERANCE_MM).sum())
    return agreeing >= WELL_SUPPORTED and agreeing >= CONFIRMING_SHARE * len(matches)


def _match(
    prepared: tuple[PreparedImage, PreparedImage], fixed: Features, moving: Features, model: Model, seed: int
) -> FeatureAlignment | None:
    """The fit to matches between the bodies; None where too few agree on any."""
    bodies = [image.regions.body_image for image in prepared]
    try:
        return align_features(fixed, moving, bodies[0], bodies[1], model, seed)
    except InputError:
        return None


def _from_features(found: FeatureAlignment, aligner: IntensityAligner) -> Alignment:
    fit = found.fit
    judged = aligner.judged(fit.transform)
    warnings = doubts(judged, aligner, found)
    inliers = int(fit.inliers.sum())
    return Alignment(fit.transform, fit.model.value, inliers, judged.score, "features", warnings, found.reliable)


def _from_intensities(found: IntensityAlignment, model: Model, aligner: IntensityAligner) -> Alignment:
    warnings = doubts(found, aligner, None)
    return Alignment(found.transform, model.value, None, found.score, "intensities", warnings)
