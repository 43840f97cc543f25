"""How alike two volumes look, for the report; registration itself has its own, differentiable terms."""

from __future__ import annotations

import torch
from torch import Tensor

HISTOGRAM_BINS = 64


def similarity(first: Tensor, second: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Both measures of two volumes (z, y, x) within a mask (z, y, x), as a dictionary for a report."""
    return {
        "normalized_cross_correlation": normalized_cross_correlation(first, second, mask),
        "mutual_information": mutual_information(first, second, mask),
    }


def normalized_cross_correlation(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Pearson's correlation of the intensities, -1 to 1; 0 where one volume is constant."""
    a, b = _selected(first, second, mask)
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def mutual_information(
    first: Tensor, second: Tensor, mask: Tensor | None = None, bins: int = HISTOGRAM_BINS
) -> float:
    """Mutual information in nats of the joint histogram of intensities; meant for two modalities.

    The bins lie between the 0.5th and 99.5th percentile of each volume, what is beyond falls into the last ones.
    """
    a, b = _selected(first, second, mask)
    joint = torch.bincount(_binned(a, bins) * bins + _binned(b, bins), minlength=bins * bins).double()
    joint = joint.view(bins, bins) / joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    known = joint > 0
    return max(0.0, float((joint[known] * (joint[known] / independent[known]).log()).sum()))


def _selected(first: Tensor, second: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise ValueError(f"volumes of different shapes: {tuple(first.shape)} and {tuple(second.shape)}")
    if mask is None:
        return first.double().flatten(), second.double().flatten()
    inside = mask.bool()
    if not bool(inside.any()):
        raise ValueError("the mask is empty")
    return first[inside].double(), second[inside].double()


def _binned(values: Tensor, bins: int) -> Tensor:
    # A histogram needs no exact percentiles, and torch.quantile refuses large inputs.
    ordered = values[:: max(1, len(values) // 1_000_000)].sort().values
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.005, 0.995))
    scaled = (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny) * bins
    return scaled.clamp(0, bins - 1).long()
