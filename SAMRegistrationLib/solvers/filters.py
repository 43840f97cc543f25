"""Separable filters on (B, C, z, y, x) tensors: 3-tap mean, Gaussian, sliding box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

SPATIAL_AXES = (-3, -2, -1)
SMALL_ON_DEVICE = 2**23
VALUES_IN_CACHE = 2**17


def smooth(volume: torch.Tensor, passes: int = 1) -> torch.Tensor:
    """Apply a 3x3x3 mean with repeated borders `passes` times.

    This is the mean-field step of coupled convex optimization (SAMConvex section 2.2: "process u using average
    pooling"). Three passes are close to a Gaussian with a standard deviation of sqrt(2) voxels. Differentiable.

    Args:
        volume: (B, C, z, y, x), floating point.
        passes: how often; 0 returns the input.

    Returns:
        A tensor like `volume`.
    """
    return _Smooth.apply(volume, passes) if passes > 0 else volume


class _Smooth(torch.autograd.Function):
    """The 3-tap mean with repeated borders is a symmetric matrix, so it is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, volume: torch.Tensor, passes: int) -> torch.Tensor:
        ctx.passes = passes
        return _mean_of_three(volume, passes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _mean_of_three(gradients[0], ctx.passes), None


def _mean_of_three(volume: torch.Tensor, passes: int) -> torch.Tensor:
    if volume.device.type == "cuda" and volume.numel() <= SMALL_ON_DEVICE:
        # A tenth of the kernels, which matters more than what they compute.
        for _ in range(passes):
            volume = F.avg_pool3d(F.pad(volume, [1] * 6, mode="replicate"), 3, stride=1)
        return volume
    volumes = volume.reshape(-1, *volume.shape[2:])
    if volume.device.type == "cpu" and volume.numel() > VALUES_IN_CACHE and len(volumes) > 1:
        # Volume by volume they stay in the processor's cache while all passes are made.
        at_once = max(1, VALUES_IN_CACHE // volumes[0].numel())
        means = torch.empty_like(volumes, memory_format=torch.contiguous_format)
        for target, part in zip(means.split(at_once), volumes.split(at_once), strict=True):
            target.copy_(_mean_of_three_at_once(part, passes))
        return means.view(volume.shape)
    return _mean_of_three_at_once(volume, passes)


def _mean_of_three_at_once(volume: torch.Tensor, passes: int) -> torch.Tensor:
    source = volume.contiguous()
    target = torch.empty_like(source)
    fresh = True
    for _ in range(passes):
        for axis in SPATIAL_AXES:
            _sum_along(source, target, axis)
            source, target = target, (torch.empty_like(source) if fresh else source)
            fresh = False
        # Once for all axes: what is added up stays of the order of the values, also in half precision.
        source.mul_(3.0 ** -len(SPATIAL_AXES))
    return source


def _sum_along(source: torch.Tensor, target: torch.Tensor, axis: int) -> None:
    """Sums of three neighbors along an axis of contiguous volumes, the values at both ends repeated."""
    size = source.shape[axis]
    if size == 1:
        torch.mul(source, 3.0, out=target)
        return
    # All in one row, neighbors so many places apart: much faster than line by line, and wrong at the ends only.
    step = source.stride(axis)
    values, sums = source.view(-1), target.view(-1)
    torch.add(values[step:], values[:-step], out=sums[step:])
    sums[:-step].add_(values[step:])
    for end, inner in ((0, 1), (size - 1, size - 2)):
        own, next_to_it = source.select(axis, end), source.select(axis, inner)
        torch.add(next_to_it, own, alpha=2.0, out=target.select(axis, end))


def gaussian(volume: torch.Tensor, sigma: float | Sequence[float], truncate: float = 3.0) -> torch.Tensor:
    """Smooth with a Gaussian; borders repeat. Differentiable.

    Args:
        volume: (B, C, z, y, x), floating point.
        sigma: standard deviation in voxels, one number or (x, y, z); an axis with 0 is left alone.
        truncate: radius of the kernel in standard deviations.
    """
    sigmas = [float(sigma)] * 3 if isinstance(sigma, (int, float)) else [float(value) for value in sigma]
    for axis, value in zip((-1, -2, -3), sigmas, strict=True):
        if value > 0:
            volume = _convolve_axis(volume, _gaussian_taps(value, truncate), axis)
    return volume


def _gaussian_taps(sigma: float, truncate: float) -> list[float]:
    radius = max(1, math.ceil(truncate * sigma))
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    total = sum(taps)
    return [tap / total for tap in taps]


def _convolve_axis(volume: torch.Tensor, taps: Sequence[float], axis: int) -> torch.Tensor:
    radius = len(taps) // 2
    size = volume.shape[axis]
    padding = [0] * 6
    padding[2 * (-1 - axis)] = padding[2 * (-1 - axis) + 1] = radius
    padded = F.pad(volume, padding, mode="replicate")
    result = padded.narrow(axis, radius, size) * taps[radius]
    for offset in range(1, radius + 1):
        pair = padded.narrow(axis, radius - offset, size) + padded.narrow(axis, radius + offset, size)
        result = result + taps[radius + offset] * pair
    return result


def box_sum(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum over a (2 radius + 1) cube, by running sums; what lies outside the volume counts as zero.

    The running sums are taken in float32 whatever the input type (half precision would lose the small
    differences), so keep the values of order one. Differentiable.
    """
    return _BoxSum.apply(volume, radius)


class _BoxSum(torch.autograd.Function):
    """The zero-padded box sum is symmetric as well."""

    @staticmethod
    def forward(ctx: Any, volume: torch.Tensor, radius: int) -> torch.Tensor:
        ctx.radius = radius
        return _box_sum(volume, radius)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _box_sum(gradients[0], ctx.radius), None


def _box_sum(volume: torch.Tensor, radius: int) -> torch.Tensor:
    result = volume if volume.dtype == torch.float64 else volume.float()
    for axis in SPATIAL_AXES:
        result = _window_sum(result, radius, axis)
    return result.to(volume.dtype)


def _window_sum(volume: torch.Tensor, radius: int, axis: int) -> torch.Tensor:
    size = volume.shape[axis]
    reach = min(radius, size - 1)
    running = volume.cumsum(axis)
    result = torch.empty_like(running)
    result.narrow(axis, 0, size - reach).copy_(running.narrow(axis, reach, size - reach))
    if reach > 0:
        result.narrow(axis, size - reach, reach).copy_(
            running.narrow(axis, size - 1, 1).expand_as(result.narrow(axis, size - reach, reach))
        )
    first = radius + 1
    if first < size:
        result.narrow(axis, first, size - first).sub_(running.narrow(axis, 0, size - first))
    return result


def box_mean(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over the part of a (2 radius + 1) cube that lies inside the volume."""
    return box_sum(volume, radius) / box_counts(volume, radius)


def box_counts(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """How many voxels of a (2 radius + 1) cube lie inside the volume: (1, 1, z, y, x), of its type."""
    counts = []
    for axis in SPATIAL_AXES:
        size = volume.shape[axis]
        place = torch.arange(size, device=volume.device)
        inside = place.clamp(max=radius) + (size - 1 - place).clamp(max=radius) + 1
        counts.append(inside.to(volume.dtype))
    along_z, along_y, along_x = counts
    return (along_z[:, None, None] * along_y[:, None] * along_x)[None, None]
