"""Adam for one tensor."""

from __future__ import annotations

import math

import torch


class Adam:
    """Kingma and Ba's descent, equal to that of `torch.optim`, whose import costs a fresh process over a second.

    Args:
        parameter: a leaf; changed in place.
        kept: how much of the running means of gradient and squared gradient a step keeps.
    """

    EPSILON = 1e-8

    def __init__(self, parameter: torch.Tensor, kept: tuple[float, float] = (0.9, 0.999)) -> None:
        self._parameter = parameter
        self._kept = kept
        self._mean, self._square, self._root = (torch.zeros_like(parameter, requires_grad=False) for _ in range(3))
        self._steps = 0

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Go one step of about the length `rate` down a gradient."""
        self._steps += 1
        root, scale = self.coefficients(self._steps, rate)
        self._gather(gradient)
        self._root.div_(root).add_(self.EPSILON)
        self._parameter.addcdiv_(self._mean, self._root, value=-scale)

    @torch.no_grad()
    def step_by(self, gradient: torch.Tensor, root: torch.Tensor, scale: torch.Tensor) -> None:
        """The step of given `coefficients`, single numbers on the parameter's device, where steps are counted."""
        self._gather(gradient)
        self._root.div_(root).add_(self.EPSILON)
        self._parameter.sub_(self._mean.div(self._root).mul_(scale))

    def coefficients(self, step: int, rate: float) -> tuple[float, float]:
        """By what the root of the squares is divided in a step, counted from 1, and what the quotient is worth."""
        mean, square = self._kept
        return math.sqrt(1.0 - square**step), rate / (1.0 - mean**step)

    def _gather(self, gradient: torch.Tensor) -> None:
        mean, square = self._kept
        self._mean.lerp_(gradient, 1.0 - mean)
        self._square.mul_(square).addcmul_(gradient, gradient, value=1.0 - square)
        torch.sqrt(self._square, out=self._root)
