"""Many values as few: means over label groups, and Learn2Reg's statistics over cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

ROBUST_PERCENTILE = 30.0


def finite_mean(values: Iterable[float]) -> float | None:
    """The mean of the finite values, or None if there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def group_means(values: Mapping[int, float], groups: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
    """The mean of a measure over each named group of labels; None for a group of which no label was measured."""
    return {
        name: finite_mean(values[label] for label in labels if label in values) for name, labels in groups.items()
    }


def robust_value(values: Iterable[float], higher_is_better: bool) -> float:
    """What the method still reaches in its worse cases: the 30th percentile over cases ("Dice30").

    For measures where less is better (HD95, TRE, SDlogJ) it is the 70th. NaN is left out.

    Returns:
        The percentile, interpolated linearly; NaN without any value.
    """
    known = np.asarray([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan")
    return float(np.percentile(known, ROBUST_PERCENTILE if higher_is_better else 100 - ROBUST_PERCENTILE))


def distribution(values: Iterable[float]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum of one or more values.

    Raises:
        ValueError: if there is no value.
    """
    known = np.asarray(list(values), dtype=np.float64)
    if not len(known):
        raise ValueError("no values to describe")
    return {
        "mean": float(known.mean()),
        "median": float(np.median(known)),
        "p95": float(np.percentile(known, 95)),
        "max": float(known.max()),
    }
