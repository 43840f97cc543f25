"""Trilinear sampling of many-channel volumes as weighted sums of table rows.

A volume whose channels lie next to each other is a table with one row per voxel, and a trilinear sample is the
weighted sum of eight rows: exactly an embedding bag. On a CPU that is 10 to 15 times faster than grid_sample for
many channels, and the gradient costs no more than eight dot products per position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def channel_table(volume: torch.Tensor) -> torch.Tensor:
    """Return (1, C, z, y, x) as a contiguous (z*y*x, C) table."""
    return volume[0].flatten(1).t().contiguous()


def sample_table(table: torch.Tensor, shape: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
    """Sample trilinearly; positions outside take the border.

    Args:
        table: (z*y*x, C) from `channel_table`; must not require a gradient.
        shape: (z, y, x) of the volume in the table.
        positions: (P, 3) float, components (x, y, z), in voxels (first voxel's center = 0).

    Returns:
        (P, C) in the type of the table, differentiable in the positions.
    """
    indices, weights = _corners(shape, positions)
    return F.embedding_bag(indices, table, per_sample_weights=weights.to(table.dtype), mode="sum")


def _corners(shape: Sequence[int], positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers (P, 8) and trilinear weights (P, 8) of the voxels around each position."""
    strides = (1, shape[2], shape[2] * shape[1])
    indices = torch.zeros((positions.shape[0], 1), dtype=torch.long, device=positions.device)
    weights = positions.new_ones((positions.shape[0], 1))
    for axis in range(3):
        last = shape[2 - axis] - 1
        coordinate = positions[:, axis].clamp(0, last)
        lower = coordinate.detach().floor().clamp_(max=max(last - 1, 0))
        fraction = coordinate - lower
        base = lower.long() * strides[axis]
        upper = base + (strides[axis] if last > 0 else 0)
        indices = (torch.stack((base, upper), dim=1)[:, :, None] + indices[:, None, :]).flatten(1)
        pair = torch.stack((1.0 - fraction, fraction), dim=1)
        weights = (pair[:, :, None] * weights[:, None, :]).flatten(1)
    return indices, weights
