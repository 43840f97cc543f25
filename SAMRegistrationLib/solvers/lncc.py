"""Squared local normalized cross-correlation from five box maps, with an analytic gradient."""

from __future__ import annotations

from typing import Any

import torch

from SAMRegistrationLib.solvers.filters import box_sum

EPSILON = 1e-4


def lncc(
    fixed: torch.Tensor, moving: torch.Tensor, radius: int = 3, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared correlation of the (2 radius + 1)**3 windows of two volumes, between 0 and 1.

    cc = cov(f, m)^2 / ((var f + eps) (var m + eps)) per window (Avants et al. 2008, section 2.3), with
    eps = 1e-4 of the variance of the whole volume, so that flat windows score 0. Five box sums go in and four
    come back; the intermediate products are not kept for the gradient.

    Args:
        fixed: (1, 1, z, y, x); no gradient.
        moving: the same shape; differentiable.
        radius: half width of the window in voxels.
        weight: (1, 1, z, y, x), not negative: windows count with the weight of their center, and voxels of
            weight 0 are left out of the windows of their neighbors.

    Returns:
        A scalar, the weighted mean over all windows.
    """
    if weight is None:
        weight = torch.ones_like(fixed)
    inside = (weight > 0).to(moving.dtype)
    fixed, fixed_scale = _standardized(fixed.to(moving.dtype), inside)
    moving_shift, moving_scale = _moments(moving.detach(), inside)
    del fixed_scale
    return _LocalCorrelation.apply(fixed, (moving - moving_shift) / moving_scale, radius, weight, inside)


def _moments(volume: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = inside.sum().clamp(min=1.0)
    mean = (volume * inside).sum() / count
    spread = (((volume - mean) * inside).square().sum() / count).sqrt()
    return mean, spread.clamp(min=1e-12)


def _standardized(volume: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, spread = _moments(volume, inside)
    return (volume - mean) / spread, spread


class _LocalCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        radius: int,
        weight: torch.Tensor,
        inside: torch.Tensor,
    ) -> torch.Tensor:
        count = box_sum(inside, radius).clamp_(min=1.0)
        fixed_mean = box_sum(fixed * inside, radius).div_(count)
        moving_mean = box_sum(moving * inside, radius).div_(count)
        covariance = box_sum(fixed * moving * inside, radius).div_(count).sub_(fixed_mean * moving_mean)
        fixed_variance = _variance(fixed, fixed_mean, inside, count, radius)
        moving_variance = _variance(moving, moving_mean, inside, count, radius)
        correlation = covariance.square() / (fixed_variance * moving_variance)
        total = weight.sum().clamp(min=1e-12)
        by_covariance = covariance.mul_(2.0).div_(fixed_variance).div_(moving_variance)
        by_covariance.mul_(weight).div_(count * total)
        by_variance = (correlation / moving_variance).mul_(-1.0).mul_(weight).div_(count * total)
        ctx.save_for_backward(fixed, moving, inside, fixed_mean, moving_mean, by_covariance, by_variance)
        ctx.radius = radius
        return (correlation * weight).sum() / total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor, None, None, None]:
        """d cov / d m_j = (f_j - mean f) / n and d var m / d m_j = 2 (m_j - mean m) / n in each window."""
        fixed, moving, inside, fixed_mean, moving_mean, by_covariance, by_variance = ctx.saved_tensors
        gradient = box_sum(by_covariance, ctx.radius).mul_(fixed)
        gradient -= box_sum(by_covariance * fixed_mean, ctx.radius)
        gradient += box_sum(by_variance, ctx.radius).mul_(moving).mul_(2.0)
        gradient -= box_sum(by_variance * moving_mean, ctx.radius).mul_(2.0)
        return None, gradient.mul_(inside).mul_(gradients[0]), None, None, None


def _variance(
    volume: torch.Tensor, mean: torch.Tensor, inside: torch.Tensor, count: torch.Tensor, radius: int
) -> torch.Tensor:
    square = box_sum(volume.square() * inside, radius).div_(count)
    return square.sub_(mean.square()).clamp_(min=0.0).add_(EPSILON)
