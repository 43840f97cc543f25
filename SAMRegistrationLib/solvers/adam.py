"""Adam for one tensor."""

from __future__ import annotations

import math

import torch


class Adam:
    """Kingma and Ba's descent, equal to that of `torch.optim`, whose import costs a fresh process over a second.

    Args:
        parameter: a leaf; changed in place.
    """

    MEAN, SQUARE, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, parameter: torch.Tensor) -> None:
        self._parameter = parameter
        self._mean, self._square, self._root = (torch.zeros_like(parameter, requires_grad=False) for _ in range(3))
        self._steps = 0

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Go one step of about the length `rate` down a gradient."""
        self._steps += 1
        self._mean.lerp_(gradient, 1.0 - self.MEAN)
        self._square.mul_(self.SQUARE).addcmul_(gradient, gradient, value=1.0 - self.SQUARE)
        torch.sqrt(self._square, out=self._root)
        self._root.div_(math.sqrt(1.0 - self.SQUARE**self._steps)).add_(self.EPSILON)
        self._parameter.addcdiv_(self._mean, self._root, value=-rate / (1.0 - self.MEAN**self._steps))
