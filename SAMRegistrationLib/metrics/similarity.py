"""How alike two volumes look, for the report; registration itself has its own, differentiable terms."""

from __future__ import annotations

import torch
from torch import Tensor

HISTOGRAM_BINS = 64
HISTOGRAM_TAIL = 0.005
PERCENTILE_SAMPLES = 200_000
_SLICES_AT_ONCE = 32


def similarity(first: Tensor, second: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Both measures of two volumes (z, y, x) within a mask (z, y, x), as a dictionary for a report.

    Raises:
        ValueError: if the shapes differ or the mask is empty.
    """
    a, b = _selected(first, second, mask)
    return {"normalized_cross_correlation": _correlation(a, b), "mutual_information": _information(a, b)}


def normalized_cross_correlation(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Pearson's correlation of the intensities, -1 to 1; 0 where one volume is constant."""
    return _correlation(*_selected(first, second, mask))


def mutual_information(
    first: Tensor, second: Tensor, mask: Tensor | None = None, bins: int = HISTOGRAM_BINS
) -> float:
    """Mutual information in nats of the joint histogram of intensities; meant for two modalities.

    The bins lie between the 0.5th and 99.5th percentile of each volume, what is beyond falls into the last ones.
    """
    return _information(*_selected(first, second, mask), bins)


def root_mean_square_difference(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """The root of the mean squared difference, in the unit of the volumes: HU for CT (RSO, section 4.1)."""
    a, b = _selected(first, second, mask)
    return float((a.double() - b.double()).square().mean().sqrt())


def _selected(first: Tensor, second: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise ValueError(f"volumes of different shapes: {tuple(first.shape)} and {tuple(second.shape)}")
    if mask is None:
        return first.flatten(), second.flatten()
    inside = mask.bool()
    if not bool(inside.any()):
        raise ValueError("the mask is empty")
    return _values_at(inside, first), _values_at(inside, second)


def _values_at(inside: Tensor, volume: Tensor) -> Tensor:
    """`volume[inside]`, some slices after the other: whoever wants to stop need not wait for a large volume."""
    pairs = zip(volume.split(_SLICES_AT_ONCE), inside.split(_SLICES_AT_ONCE), strict=True)
    return torch.cat([values[chosen] for values, chosen in pairs])


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = (values - values.mean(dtype=torch.float64).to(values.dtype) for values in (a, b))
    covariance, variance_a, variance_b = ((x * y).sum(dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b)))
    scale = float((variance_a * variance_b).sqrt())
    return float(covariance) / scale if scale > 0 else 0.0


def _information(a: Tensor, b: Tensor, bins: int = HISTOGRAM_BINS) -> float:
    joint = torch.bincount(_binned(a, bins) * bins + _binned(b, bins), minlength=bins * bins).double()
    joint = joint.view(bins, bins) / joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    known = joint > 0
    return max(0.0, float((joint[known] * (joint[known] / independent[known]).log()).sum()))


def _binned(values: Tensor, bins: int) -> Tensor:
    # A histogram needs no exact percentiles.
    ordered = values[:: max(1, len(values) // PERCENTILE_SAMPLES)].sort().values
    last = len(ordered) - 1
    low, high = (ordered[round(share * last)] for share in (HISTOGRAM_TAIL, 1 - HISTOGRAM_TAIL))
    if high <= low:
        return torch.zeros_like(values, dtype=torch.long)
    return ((values - low) * (bins / (high - low))).clamp_(0, bins - 1).long()
