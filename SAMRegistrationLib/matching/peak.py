"""The place between voxels where a similarity is greatest."""

from __future__ import annotations

import torch
from torch import Tensor

_FLATTEST = -1e-6
"""A curvature closer to zero than this has no peak worth finding."""


def peak_offset(before: Tensor, middle: Tensor, after: Tensor) -> Tensor:
    """Where the parabola through three neighboring values peaks, in voxels from the middle one.

    Args:
        before: values one voxel back along an axis.
        middle: values of the same shape at the voxels.
        after: values one voxel on.

    Returns:
        Offsets of that shape, at most half a voxel; 0 where the parabola has no peak.
    """
    curvature = before + after - 2 * middle
    peak = (before - after) / (2 * curvature.clamp(max=_FLATTEST))
    return torch.where(curvature < _FLATTEST, peak.clamp(-0.5, 0.5), 0.0)
