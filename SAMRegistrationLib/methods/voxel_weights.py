"""Which voxels count in a descent."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ..solvers.ops import upsample, warp
from .problem import Problem, at_shape


def voxel_weight_of(problem: Problem, near_bodies: bool) -> Tensor | None:
    """1 where both volumes have data under the displacement found, at half resolution; None for everywhere."""
    shape = tuple(max(1, n // 2) for n in problem.grid.shape)
    fixed, moving = _masks_at(problem, shape)
    if moving is not None and problem.displacement is not None:
        moving = warp(moving, upsample(problem.displacement, shape))
    return _product(problem.near_bodies() if near_bodies else None, fixed, moving)


def known_under(problem: Problem, displacements: tuple[Tensor, ...]) -> Tensor | None:
    """1 where both volumes have data under all displacements of one shape, on their grid; None for everywhere."""
    fixed, moving = _masks_at(problem, tuple(displacements[0].shape[2:]))
    under = [] if moving is None else [warp(moving, u, padding="zeros") for u in displacements]
    return _product(fixed, *under)


def _masks_at(problem: Problem, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The problem's masks at a shape over the working grid's box."""
    fixed, moving = problem.masks()
    return weight_at(fixed, shape), weight_at(moving, shape)


def _product(*weights: Tensor | None) -> Tensor | None:
    """The product of those weights that there are; None, for everywhere, without any."""
    known = [weight for weight in weights if weight is not None]
    return reduce(torch.mul, known) if known else None


def weight_at(voxel_weight: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """The weights at a shape over the working grid's box."""
    return None if voxel_weight is None else at_shape(voxel_weight, shape)


def without_made_up(fixed: Tensor, problem: Problem) -> Tensor:
    """Embeddings (1, C, z, y, x) of the fixed volume, nothing beyond the end of a scan that is masked there.

    What an organ's contour left beyond it is embedded amid repeated slices, which tell a search where to look but
    are not true.
    """
    depth, (first, last) = problem.grid.shape[0], problem.shown_slices()
    if last - first + 1 == depth:
        return fixed
    shown = fixed.new_zeros(1, 1, depth, 1, 1)
    shown[:, :, first : last + 1] = 1
    return fixed * (at_shape(shown, (fixed.shape[2], 1, 1)) > 0.5)
