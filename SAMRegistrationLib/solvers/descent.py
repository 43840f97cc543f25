"""What an instance optimization descends on, and how: wherever the steps are then taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from SAMRegistrationLib.solvers.field_state import ControlledState, FieldState, resized_values
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.fold_term import FoldTerm
from SAMRegistrationLib.solvers.terms import Term, diffusion

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


class Descent:
    """What is descended on: the sum of all terms as a function of the control points.

    Args:
        initial: as for `optimize`.
        terms: as for `optimize`.
        config: see `OptimizationConfig`.
    """

    def __init__(self, initial: torch.Tensor, terms: Sequence[Term], config: OptimizationConfig) -> None:
        self.config = config
        self._initial = initial.detach().float()
        self._shape = self._initial.shape[2:]
        control_shape = [max(2, math.ceil(size / config.control_spacing)) for size in self._shape]
        self._steps = [self._shape[axis] / control_shape[axis] for axis in (2, 1, 0)]
        self._coarse_initial = resized_values(self._initial, control_shape)
        self.parameter = torch.zeros((1, 3, *control_shape), device=initial.device, requires_grad=True)
        self.terms: list[Term] = [*terms, FoldTerm(config.folding)] if config.folding > 0 else list(terms)

    def loss_and_gradient(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, without a graph, and its gradient by the control points."""
        config = self.config
        control = smooth(self.parameter, config.smoothing)
        state = self._state(control, iteration)
        regularized = control + self._coarse_initial if config.diffusion_of_total else control
        loss = config.diffusion * diffusion(regularized, self._steps)
        loss = sum((term.weight * term(state) for term in self.terms), start=loss)
        (gradient,) = torch.autograd.grad(loss, self.parameter)
        return loss.detach(), gradient

    def _state(self, control: torch.Tensor, iteration: int) -> FieldState:
        if control.device.type == "cpu" and control.shape[2:] != self._shape:
            return ControlledState(self._initial, control, iteration)
        residual = resized_values(control, self._shape)
        return FieldState(self._initial + residual, residual, iteration)

    @torch.no_grad()
    def field(self) -> torch.Tensor:
        """The displacement as it is now."""
        residual = resized_values(smooth(self.parameter, self.config.smoothing), self._shape)
        return (self._initial + residual).detach()


def rate_share(iteration: int, config: OptimizationConfig) -> float:
    """The learning rate of an iteration as a share of the first."""
    progress = iteration / max(1, config.iterations - 1)
    return config.final_rate + (1.0 - config.final_rate) * 0.5 * (1.0 + math.cos(math.pi * progress))
