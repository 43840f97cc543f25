"""Gradient descent on a displacement field for one pair of volumes.

SAMConvex section 2.5 ends a registration with 50 iterations of Adam on the field itself. As there, and in
ConvexAdam, the field is a smoothed parameter: the smoothing acts as a preconditioner. Here the parameter lives on
a coarser control grid and is a residual that is added to the initial field, u = initial + upsample(smooth(p)), so
that features are always sampled once, at the total displacement, and details of the initial field survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from SAMRegistrationLib.solvers.adam import Adam
from SAMRegistrationLib.solvers.descent import Callback, Descent, OptimizationConfig, rate_share
from SAMRegistrationLib.solvers.device_descent import descend_on_gpu
from SAMRegistrationLib.solvers.terms import Term


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
    if initial.device.type == "cuda":
        u, losses = descend_on_gpu(initial, terms, config, callback)
        return OptimizationResult(u, losses)
    descent = Descent(initial, terms, config)
    adam = Adam(descent.parameter)
    losses = []
    for iteration in range(config.iterations):
        loss, gradient = descent.loss_and_gradient(iteration)
        adam.step(gradient, config.learning_rate * rate_share(iteration, config))
        losses.append(float(loss))
        if callback is not None:
            callback(iteration, losses[-1])
        if _has_settled(losses, config):
            break
    return OptimizationResult(descent.field(), losses)


def _has_settled(losses: Sequence[float], config: OptimizationConfig) -> bool:
    if config.tolerance <= 0 or len(losses) < 2 * config.patience:
        return False
    recent = sum(losses[-config.patience :])
    before = sum(losses[-2 * config.patience : -config.patience])
    return before - recent < config.tolerance * abs(before)
