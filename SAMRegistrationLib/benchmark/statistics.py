"""Whether a difference between two methods is more than chance: paired tests and intervals over pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .measures import Column, values_of
from .results import Results, methods_of

RESAMPLINGS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the interval in which it lies in 95 of 100 cases."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One method against the reference, over the pairs that both have.

    Args:
        method: the other method.
        measure: what is compared.
        pairs: how many pairs both have.
        difference: reference minus the other, so that the sign says who is larger.
        wins: on how many pairs the reference is better.
        p: of the two-sided Wilcoxon signed-rank test, NaN where there is no pair.
        p_holm: the same, corrected for the number of methods that the reference is compared with (Holm).
    """

    method: str
    measure: str
    pairs: int
    difference: Interval
    wins: int
    p: float
    p_holm: float = math.nan


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """The mean and its percentile bootstrap interval; NaN without values."""
    known = np.asarray(values, dtype=np.float64)
    if not len(known):
        return Interval(math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, len(known), size=(RESAMPLINGS, len(known)))
    low, high = np.percentile(known[drawn].mean(axis=1), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(known.mean()), float(low), float(high))


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of the signed-rank test; 1 where nothing differs, NaN without differences to test."""
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return math.nan
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count."""
    corrected = [math.nan] * len(p_values)
    ordered = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - rank)))
        corrected[index] = largest
    return corrected


def compare(results: Results, reference: str, column: Column, seed: int) -> list[Comparison]:
    """The reference against every other method that shares pairs with it, on one measure."""
    ours = values_of(results, reference, column)
    comparisons = []
    for method in methods_of(results):
        theirs = values_of(results, method, column)
        shared = [pair for pair in ours if pair in theirs]
        if method == reference or not shared:
            continue
        differences = [ours[pair] - theirs[pair] for pair in shared]
        better = [d > 0 if column.higher_is_better else d < 0 for d in differences]
        interval = bootstrap_mean(differences, seed)
        comparisons.append(
            Comparison(method, column.title, len(shared), interval, sum(better), wilcoxon(differences))
        )
    corrected = holm([comparison.p for comparison in comparisons])
    return [
        Comparison(**{**vars(comparison), "p_holm": p})
        for comparison, p in zip(comparisons, corrected, strict=True)
    ]
