"""Many affine maps improved together by gradient descent on how unlike they leave the volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from ..grid import FloatArray
from ..solvers.adam import Adam
from ..transforms import AffineTransform
from .likeness import Likeness, PairLikeness, both_ways


class Model(Enum):
    """How free an alignment is."""

    TRANSLATION = "translation"
    RIGID = "rigid"
    SIMILARITY = "similarity"
    AFFINE = "affine"


_FREE = {
    Model.TRANSLATION: [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    Model.RIGID: [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    Model.SIMILARITY: [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    Model.AFFINE: [1] * 12,
}

TYPICAL_STRETCH = 0.12
"""Standard deviation of the logarithm of how much people differ along an axis."""

_STRETCH_PENALTY = {"correlation": 0.01, "information": 0.1}
"""Shared information rises by less than correlation where a map comes to fit, so less of it is worth a stretch."""

_KEPT = 0.8, 0.95
"""Shorter memories than Adam's usual ones: there are some dozens of steps, and likeness changes fast."""

_LEVER_MM = 100.0
"""Turning or stretching by one unit of its parameter moves a point at this distance by one mm."""


def refine(
    likeness: PairLikeness,
    starts: Sequence[AffineTransform],
    center: FloatArray,
    model: Model,
    iterations: int,
    step_mm: float,
) -> tuple[list[AffineTransform], Likeness]:
    """Improve all starts at once.

    Args:
        likeness: of the pair.
        starts: maps from fixed to moving world.
        center: world position in the fixed volume about which to turn and stretch.
        model: what is free; a start's own linear part is kept and improved on.
        iterations: number of Adam steps; the step shrinks to a tenth along a cosine.
        step_mm: first step length.

    Returns:
        The improved maps in the order of the starts, and how alike the volumes are under them.
    """
    base = torch.from_numpy(np.stack([start.matrix for start in starts]))
    free = torch.tensor(_FREE[model], dtype=torch.float64)
    parameters = torch.zeros(len(starts), 12, dtype=torch.float64, requires_grad=True)
    middle = torch.from_numpy(np.asarray(center, dtype=np.float64))
    descent = Adam(parameters, _KEPT)
    stiffness = _STRETCH_PENALTY["correlation" if likeness.correlation else "information"]
    best = torch.full((len(starts),), -torch.inf, dtype=torch.float64)
    best_matrices = base.clone()
    scores_and_gradient = likeness.differentiated(both_ways(base))
    for iteration in range(iterations):
        with torch.enable_grad():
            matrices = base @ _local_maps(parameters * free, middle)
            both = both_ways(matrices)
            penalty = stiffness * _stretch(matrices)
            score, by_both = scores_and_gradient(both.detach())
            # One number: given several gradients, autograd would import half of torch's compiler to check them.
            (gradient,) = torch.autograd.grad(penalty.sum() - (both * by_both).sum(), parameters)
        quality = score - penalty.detach()
        better = quality > best
        best = torch.where(better, quality, best)
        best_matrices = torch.where(better[:, None, None], matrices.detach(), best_matrices)
        descent.step(gradient, step_mm * (0.55 + 0.45 * math.cos(math.pi * iteration / iterations)))
    with torch.no_grad():
        final = likeness(best_matrices)
    return [AffineTransform(matrix.numpy()) for matrix in best_matrices], final


def _local_maps(parameters: Tensor, center: Tensor) -> Tensor:
    """Maps (B, 4, 4) near the identity about a center.

    Parameters in mm: shift (3), turn (3), common stretch (1), stretch differences (2) and shears (3), the last
    nine as the movement of a point 100 mm away.
    """
    shift, turn, stretch = parameters[:, :3], parameters[:, 3:6] / _LEVER_MM, parameters[:, 6:] / _LEVER_MM
    common, first, second, xy, xz, yz = stretch.unbind(-1)
    x, y, z = turn.unbind(-1)
    zero = torch.zeros_like(x)
    generator = torch.stack(
        [
            *(common + first, xy - z, xz + y),
            *(xy + z, common + second, yz - x),
            *(xz - y, yz + x, common - first - second),
        ],
        dim=-1,
    ).view(-1, 3, 3)
    linear = torch.linalg.matrix_exp(generator)
    offset = center + shift - torch.einsum("bij,j->bi", linear, center)
    top = torch.cat([linear, offset[:, :, None]], dim=2)
    bottom = torch.stack([zero, zero, zero, zero + 1], dim=-1)[:, None]
    return torch.cat([top, bottom], dim=1)


def _stretch(matrices: Tensor) -> Tensor:
    """How unlike a rigid map each map is: mean squared logarithm of the stretches in typical deviations."""
    linear = matrices[:, :3, :3]
    logarithms = torch.linalg.eigvalsh(linear.transpose(1, 2) @ linear).clamp(min=1e-6).log() / 2
    return (logarithms / TYPICAL_STRETCH).square().mean(dim=1)
