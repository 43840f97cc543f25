"""Gradient descent on a displacement field for one pair of volumes.

SAMConvex section 2.5 ends a registration with 50 iterations of Adam on the field itself. As there, and in
ConvexAdam, the field is a smoothed parameter: the smoothing acts as a preconditioner. Here the parameter lives on
a coarser control grid and is a residual that is added to the initial field, u = initial + upsample(smooth(p)), so
that features are always sampled once, at the total displacement, and details of the initial field survive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from SAMRegistrationLib.solvers.adam import Adam
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.ops import upsample
from SAMRegistrationLib.solvers.terms import FieldState, FoldTerm, Term, diffusion

Callback = Callable[[int, float], None]


@dataclass(frozen=True)
class OptimizationConfig:
    """How to descend.

    Attributes:
        iterations: at most this many.
        learning_rate: of Adam, in voxels of the field grid.
        final_rate: the rate falls along a cosine to this share of itself.
        control_spacing: voxels of the field grid between control points.
        smoothing: 3x3x3 mean passes over the control points.
        diffusion: weight of the mean squared gradient.
        diffusion_of_total: regularize the total field (as ConvexAdam) or only the residual (as SAMConvex).
        folding: weight of the penalty of `FoldTerm`.
        patience: the run ends when the mean loss of this many iterations improves on that of as many before by
            less than `tolerance` of it.
        tolerance: see `patience`; 0 never stops early.
    """

    iterations: int = 50
    learning_rate: float = 0.2
    final_rate: float = 0.2
    control_spacing: int = 2
    smoothing: int = 3
    diffusion: float = 0.1
    diffusion_of_total: bool = True
    folding: float = 1.0
    patience: int = 8
    tolerance: float = 1e-4


@dataclass(frozen=True)
class OptimizationResult:
    """The optimized displacement (1, 3, z, y, x) and the loss of every iteration."""

    u: torch.Tensor
    losses: list[float] = field(repr=False)


def optimize(
    initial: torch.Tensor,
    terms: Sequence[Term],
    config: OptimizationConfig | None = None,
    callback: Callback | None = None,
) -> OptimizationResult:
    """Lower the weighted sum of the terms, the diffusion and the fold penalty.

    Args:
        initial: (1, 3, z, y, x) displacement in voxels of the field grid, float32. Its grid is that of the result.
        terms: data and other terms (see `terms`); their volumes may be on other grids over the same box.
        config: see `OptimizationConfig`.
        callback: called as `callback(iteration, loss)` after each iteration; may raise to cancel.

    Returns:
        The field after the last iteration. Deterministic on a CPU.
    """
    config = config or OptimizationConfig()
    initial = initial.detach().float()
    shape = initial.shape[2:]
    control_shape = [max(2, math.ceil(size / config.control_spacing)) for size in shape]
    steps = [shape[axis] / control_shape[axis] for axis in (2, 1, 0)]
    coarse_initial = _resized_values(initial, control_shape)
    parameter = torch.zeros((1, 3, *control_shape), device=initial.device, requires_grad=True)
    descent = Adam(parameter)
    all_terms: list[Term] = [*terms, FoldTerm(config.folding)] if config.folding > 0 else list(terms)
    losses: list[float] = []
    for iteration in range(config.iterations):
        control = smooth(parameter, config.smoothing)
        residual = _resized_values(control, shape)
        state = FieldState(initial + residual, residual, iteration)
        loss = config.diffusion * diffusion(
            control + coarse_initial if config.diffusion_of_total else control, steps
        )
        loss = sum((term.weight * term(state) for term in all_terms), start=loss)
        (gradient,) = torch.autograd.grad(loss, parameter)
        descent.step(gradient, config.learning_rate * _rate_share(iteration, config))
        losses.append(float(loss.detach()))
        if callback is not None:
            callback(iteration, losses[-1])
        if _has_settled(losses, config):
            break
    with torch.no_grad():
        u = initial + _resized_values(smooth(parameter, config.smoothing), shape)
    return OptimizationResult(u.detach(), losses)


def _resized_values(u: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resample without rescaling: control points hold voxels of the field grid."""
    ratios = [u.shape[2 + axis] / shape[axis] for axis in (2, 1, 0)]
    return upsample(u, shape) * u.new_tensor(ratios).view(1, 3, 1, 1, 1)


def _rate_share(iteration: int, config: OptimizationConfig) -> float:
    progress = iteration / max(1, config.iterations - 1)
    return config.final_rate + (1.0 - config.final_rate) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _has_settled(losses: Sequence[float], config: OptimizationConfig) -> bool:
    if config.tolerance <= 0 or len(losses) < 2 * config.patience:
        return False
    recent = sum(losses[-config.patience :])
    before = sum(losses[-2 * config.patience : -config.patience])
    return before - recent < config.tolerance * abs(before)
