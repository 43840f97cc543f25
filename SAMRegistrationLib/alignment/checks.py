"""Whether an alignment looks wrong, in sentences for the report."""

from __future__ import annotations

import math

from ..errors import InputError
from .feature_alignment import FeatureAlignment
from .intensity_alignment import IntensityAligner, IntensityAlignment
from .robust_fit import unusual_stretch
from .volumes import CoarseVolume

LEAST_OVERLAP = 0.05
"""Below this share of the smaller body an alignment means nothing."""

_SMALLEST_BODY_ML = 20.0
"""What is smaller looks like something at many places of any body."""

_SMALL_OVERLAP = 0.25
_LOW_CORRELATION = 0.5
_LOW_INFORMATION = 0.15
_CLOSE_RUNNER_UP = 0.97
_UNUSUAL_STRETCH = 1.8


def doubts(found: IntensityAlignment, aligner: IntensityAligner, features: FeatureAlignment | None) -> list[str]:
    """What makes an alignment doubtful; empty where nothing does.

    Raises:
        InputError: if the volumes hardly overlap under the alignment.
    """
    if found.overlap < LEAST_OVERLAP:
        raise InputError(
            "no alignment was found under which the volumes overlap; give an initial transform or check that they "
            "show the same part of the body"
        )
    sentences = []
    smallest = min(_body_ml(volume) for volume in aligner.coarse)
    if smallest < _SMALLEST_BODY_ML:
        sentences.append(f"one of the volumes shows {smallest:.0f} ml of a body only")
    if found.overlap < _SMALL_OVERLAP:
        sentences.append(f"only {100 * found.overlap:.0f} % of the smaller volume's body lies in the other volume")
    low = _LOW_CORRELATION if aligner.likeness.correlation else _LOW_INFORMATION
    if found.similarity < low:
        sentences.append(f"the volumes look little alike after the alignment (similarity {found.similarity:.2f})")
    if features is None and found.runner_up > _CLOSE_RUNNER_UP * found.score:
        sentences.append("another alignment fits almost as well, so this one may be wrong")
    if features is not None and not features.reliable:
        count = int(features.fit.inliers.sum())
        sentences.append(f"only {count} of {features.stable} matched points agree with the alignment")
    if (stretch := unusual_stretch(found.transform)) > _UNUSUAL_STRETCH:
        sentences.append(f"the alignment stretches by {stretch:.1f} times the usual difference between people")
    return [f"check the alignment: {sentence}" for sentence in sentences]


def _body_ml(volume: CoarseVolume) -> float:
    return float(volume.body.sum()) * math.prod(volume.grid.spacing) / 1000
