"""How alike two feature maps are at small shifts: correlation volumes, shift by shift, never by unfolding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHANNELS_AT_ONCE = 16
VALUES_IN_CACHE = 2**18


def embedding_correlation(fixed: Tensor, moving: Tensor, step: int, stride: Sequence[int] = (1, 1, 1)) -> Tensor:
    """Cosines between the vector of every fixed voxel and those of 27 moving voxels around it.

    Args:
        fixed, moving: unit vectors (B, C, z, y, x).
        step: the shifts are -step, 0 and step voxels along each axis; beyond the border its value holds.
        stride: (z, y, x) enlargement of both maps before that; the enlarged vectors are scaled to unit length.

    Returns:
        (B, 27, z * stride, y * stride, x * stride) in float32, shifts in the order z, y, x with x fastest.
    """
    products = fixed_norm = moving_norm = torch.zeros((), device=fixed.device)
    parts = zip(fixed.split(CHANNELS_AT_ONCE, dim=1), moving.split(CHANNELS_AT_ONCE, dim=1), strict=True)
    for fixed_part, moving_part in parts:
        fixed_part, moving_part = (_enlarged(part.float(), stride) for part in (fixed_part, moving_part))
        shifted = [(fixed_part * view).sum(dim=1) for view in shifts(moving_part, 1, step)]
        products = products + torch.stack(shifted, dim=1)
        fixed_norm = fixed_norm + fixed_part.square().sum(dim=1, keepdim=True)
        moving_norm = moving_norm + moving_part.square().sum(dim=1, keepdim=True)
    norms = torch.cat(list(shifts(moving_norm, 1, step)), dim=1) * fixed_norm
    return products * torch.rsqrt(norms.clamp(min=1e-12))


def _enlarged(volume: Tensor, stride: Sequence[int]) -> Tensor:
    if tuple(stride) == (1, 1, 1):
        return volume
    factors = [float(factor) for factor in stride]
    return functional.interpolate(volume, scale_factor=factors, mode="trilinear", align_corners=False)


def shifts(volume: Tensor, radius: int, step: int = 1) -> Iterator[Tensor]:
    """Views of a (B, C, z, y, x) volume, shifted by -radius to radius steps along each axis, x fastest."""
    padded = functional.pad(volume, (radius * step,) * 6, mode="replicate")
    return _windows(padded, volume.shape[2:], radius, step)


def _windows(padded: Tensor, shape: Sequence[int], radius: int, step: int = 1) -> Iterator[Tensor]:
    depth, height, width = shape
    for z, y, x in product(range(0, (2 * radius + 1) * step, step), repeat=3):
        yield padded[:, :, z : z + depth, y : y + height, x : x + width]


def feature_differences(fixed: Tensor, padded: Tensor, radius: int) -> Tensor:
    """Sum of absolute differences of features at all shifts up to a radius.

    Args:
        fixed: (B, C, z, y, x).
        padded: (B, C, z + 2 radius, ...), the moving features with a margin of `radius` voxels.
        radius: largest shift along each axis.

    Returns:
        (B, (2 radius + 1)^3, z, y, x), x fastest. The gradient takes no more memory than the result.
    """
    if torch.is_grad_enabled() and (fixed.requires_grad or padded.requires_grad):
        return _FeatureDifferences.apply(fixed, padded, radius)
    return _feature_differences(fixed, padded, radius)


def _feature_differences(fixed: Tensor, padded: Tensor, radius: int) -> Tensor:
    batch, channels, depth, height, width = fixed.shape
    result = fixed.new_empty((batch, (2 * radius + 1) ** 3, depth, height, width))
    in_cache = max(1, VALUES_IN_CACHE // (batch * channels * height * width))
    planes = in_cache if fixed.device.type == "cpu" else depth
    for start in range(0, depth, planes):
        stop = min(start + planes, depth)
        part = fixed[:, :, start:stop]
        windows = _windows(padded[:, :, start : stop + 2 * radius], part.shape[2:], radius)
        for number, window in enumerate(windows):
            result[:, number, start:stop] = (part - window).abs_().sum(dim=1)
    return result


class _FeatureDifferences(torch.autograd.Function):
    """`feature_differences` whose backward pass computes every shift again instead of storing it."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, padded: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(fixed, padded)
        ctx.radius = radius
        return _feature_differences(fixed, padded, radius)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        fixed, padded = ctx.saved_tensors
        fixed_gradient, padded_gradient = torch.zeros_like(fixed), torch.zeros_like(padded)
        windows = _windows(padded, fixed.shape[2:], ctx.radius)
        targets = _windows(padded_gradient, fixed.shape[2:], ctx.radius)
        for number, (window, target) in enumerate(zip(windows, targets, strict=True)):
            part = (fixed - window).sign_().mul_(gradients[0][:, number, None])
            fixed_gradient += part
            target -= part
        return fixed_gradient, padded_gradient, None
