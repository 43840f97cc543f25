"""What a predicted displacement is judged by. Each loss is a mean that becomes small; batches have one pair.

A field u is (1, 3, z, y, x) in voxels of its own grid, as everywhere. `weight` (1, 1, z, y, x) says which voxels
count; where it is None all do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...features.mind import mind_ssc
from ...networks.fields import coarsen, warp
from ...solvers.lncc import lncc
from ...solvers.ops import jacobian_determinant, upsample
from ...solvers.terms import sample_field

_SMALLEST_NORM = 1e-6


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean of (1, 1, z, y, x) values."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


def correlation_loss(fixed: Tensor, warped: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - the correlation coefficient of all counted voxels (NCC)."""
    first, second = fixed - mean(fixed, weight), warped - mean(warped, weight)
    variances = mean(first.square(), weight) * mean(second.square(), weight)
    return 1 - mean(first * second, weight) / variances.clamp(min=1e-12).sqrt()


def local_correlation_loss(
    fixed: Tensor, warped: Tensor, weight: Tensor | None = None, radius: int = 4, scales: int = 1
) -> Tensor:
    """1 - the squared local correlation (see `lncc`), averaged over resolutions.

    At each coarser resolution, half as fine as the one before, the window is one voxel less wide to each side and
    counts half.
    """
    total, sum_of_shares = fixed.new_zeros(()), 0.0
    for scale in range(scales):
        share = 0.5**scale
        total = total + share * (1 - lncc(fixed, warped, max(1, radius - scale), weight))
        sum_of_shares += share
        if scale + 1 < scales:
            fixed, warped = coarsen(fixed, 2), coarsen(warped, 2)
            weight = None if weight is None else coarsen(weight, 2)
    return total / sum_of_shares


def squared_difference(fixed: Tensor, warped: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean squared difference (MSE)."""
    return mean((fixed - warped).square(), weight)


def mind_loss(fixed: Tensor, moving: Tensor, field: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean squared difference of the MIND-SSC descriptors, the moving ones warped."""
    with torch.no_grad():
        fixed, moving = mind_ssc(fixed), mind_ssc(moving)
    return mean((fixed - warp(moving, field)).square().mean(dim=1, keepdim=True), weight)


def embedding_loss(fixed: Tensor, moving: Tensor, field: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - the mean cosine of embeddings, the moving ones warped and normalized again (SAME, equation 3).

    Args:
        fixed, moving: (1, C, z', y', x') unit vectors over the box of the field, which is taken to their grid.
        field: (1, 3, z, y, x).
        weight: on the field's grid.
    """
    shape = tuple(fixed.shape[2:])
    # Normalized by hand: the usual way takes the square root of zero where vectors are empty.
    warped = warp(moving, upsample(field, shape))
    length = warped.square().sum(dim=1, keepdim=True).clamp(min=_SMALLEST_NORM**2).sqrt()
    cosine = (fixed * warped / length).sum(dim=1, keepdim=True)
    if weight is not None and tuple(weight.shape[2:]) != shape:
        weight = functional.interpolate(weight, size=shape, mode="area")
    return mean(1 - cosine, weight)


def dice_loss(fixed: Tensor, moving: Tensor, field: Tensor) -> Tensor:
    """1 - the mean overlap of structures, the moving ones warped linearly so that the field gets a gradient.

    Args:
        fixed, moving: (1, K, z, y, x), 1 inside the structure of a channel.
        field: (1, 3, z, y, x).
    """
    warped = warp(moving, field)
    both = (fixed * warped).sum(dim=(2, 3, 4))
    sizes = fixed.sum(dim=(2, 3, 4)) + warped.sum(dim=(2, 3, 4))
    return 1 - (2 * both / sizes.clamp(min=1e-6)).mean()


def keypoint_loss(fixed_points: Tensor, moving_points: Tensor, field: Tensor, spacing: float) -> Tensor:
    """The mean distance in mm of moved fixed points from their partners, (P, 3) each in voxels (x, y, z)."""
    reached = fixed_points + sample_field(field, fixed_points)
    return (reached - moving_points).square().sum(dim=1).add(1e-6).sqrt().mean() * spacing


def known_field_loss(field: Tensor, known: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean squared distance in voxels from the known field."""
    return mean((field - known).square().sum(dim=1, keepdim=True), weight)


def total_variation(field: Tensor) -> Tensor:
    """The mean absolute forward difference, summed over axes and components."""
    parts = [field.diff(dim=axis).abs().sum(dim=1).mean() for axis in (2, 3, 4) if field.shape[axis] > 1]
    return torch.stack(parts).sum()


def negative_jacobian(field: Tensor) -> Tensor:
    """The mean of max(0, -det) of the map's Jacobian."""
    return functional.relu(-jacobian_determinant(field)).mean()
