"""Which landmark pairs contradict the rest: each is predicted from the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..transforms import FloatArray

REACH_MM = 60.0
"""Over this distance corrections of neighboring places resemble each other."""

LEAST_PAIRS = 4
"""Below, nobody can say who is wrong."""

_LIMIT = 4.0
"""A pair contradicts the rest if it is off by so many standard deviations of its prediction."""

_LEAST_SPREAD_MM = 1.0
_COMMON_SHIFT = 100.0
_GAUSSIAN_MEDIAN = 1.54
"""Median length of a three-dimensional vector whose components have the standard deviation 1."""


def contradicting(points: FloatArray, corrections: FloatArray, weights_mm: FloatArray) -> NDArray[np.bool_]:
    """Which corrections do not fit a smooth correction through the others.

    The corrections are taken for samples of a Gaussian random field with an unknown mean, whose covariance falls
    over `REACH_MM`, and whose strength is that of most of them. Leaving one out and predicting it from the rest is
    then a matter of one inverse (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section
    5.4.2). The worst one goes first, since it spoils the predictions of its neighbors.

    Args:
        points: (N, 3) where the corrections are, in mm.
        corrections: (N, 3) in mm.
        weights_mm: (N,) how uncertain each is.

    Returns:
        (N,) bool; at most a third of the pairs.
    """
    kept = np.arange(len(points))
    flagged = np.zeros(len(points), dtype=bool)
    while len(kept) >= LEAST_PAIRS and flagged.sum() < len(points) // 3:
        scores = left_out_scores(points[kept], corrections[kept], weights_mm[kept])
        worst = int(scores.argmax())
        if scores[worst] <= _LIMIT:
            break
        flagged[kept[worst]] = True
        kept = np.delete(kept, worst)
    return flagged


def left_out_scores(points: FloatArray, corrections: FloatArray, weights_mm: FloatArray) -> FloatArray:
    """How far each correction is from what the others predict, in standard deviations of a component: (N,)."""
    deviation = corrections - np.median(corrections, axis=0)
    spread = max(_LEAST_SPREAD_MM, float(np.median(np.linalg.norm(deviation, axis=1))) / _GAUSSIAN_MEDIAN)
    squared = np.square(points[:, None] - points[None]).sum(axis=-1)
    covariance = spread**2 * np.exp(-squared / (2 * REACH_MM**2))
    # What is common to all says nothing about any: a shift of unknown size.
    covariance += (_COMMON_SHIFT * spread) ** 2
    covariance[np.diag_indices(len(points))] += np.square(np.maximum(weights_mm, _LEAST_SPREAD_MM / 2))
    inverse = np.linalg.inv(covariance)
    variance = 1 / np.diag(inverse)
    residual = (inverse @ corrections) * variance[:, None]
    return np.linalg.norm(residual, axis=1) / np.sqrt(3 * variance)
