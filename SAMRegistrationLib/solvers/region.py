"""Gradient descent on the displacement of a region, whose loss is looked at inside a box only.

The region is the box and a margin. A window that is 1 in the box and falls smoothly to 0 at the margin's edge
multiplies the displacement, so that nothing beyond the margin can change. What the unknowns are (control points of
a spline, the weights of a network) is left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from SAMRegistrationLib.solvers.bspline import Part
from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.filters import gaussian
from SAMRegistrationLib.solvers.fold_term import CORNERS
from SAMRegistrationLib.solvers.ops import corner_determinant
from SAMRegistrationLib.solvers.terms import Term

Callback = Callable[[int, float], None]

FOLD_STRIDE = 3
"""Voxels between those where the fold penalty is evaluated."""


class Deformation(Protocol):
    """The unknowns of a descent and the displacement that they stand for."""

    def parameters(self) -> Sequence[torch.Tensor]:
        """What is descended on."""
        ...

    def prepare(self) -> None:
        """Called once an iteration, before `at`."""
        ...

    def at(self, part: Part) -> torch.Tensor:
        """The displacement in mm along the grid's axes on a part of the region's grid, (1, 3, z, y, x)."""
        ...

    def roughness(self) -> torch.Tensor:
        """Mean squared gradient of the displacement, a scalar."""
        ...


@dataclass(frozen=True)
class RegionVolumes:
    """What a region holds, everything on its grid.

    Attributes:
        fixed: (1, C, z, y, x).
        moving: (1, C, z, y, x), the moving volume under the accepted map.
        weight: (1, 1, z, y, x) of the loss, 0 outside the box.
        window: (1, 1, z, y, x) by which the displacement is multiplied.
        spacing: (x, y, z) mm.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    weight: torch.Tensor
    window: torch.Tensor
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Level:
    """A region at one resolution, its fixed side cut down to the box.

    Attributes:
        part: the voxels of the region's grid that the level looks at, a strided range that holds the box.
        fixed: (1, C, z, y, x) on `part`.
        moving: (1, C, z', y', x') on the whole region, with the stride of `part`.
        weight: (1, 1, z, y, x) on `part`.
        window: (1, 1, z, y, x) on `part`.
        first: (1, 3, 1, 1, 1) the voxel (x, y, z) of `moving` where `part` begins.
        voxel: (1, 3, 1, 1, 1) mm of a voxel of the level.
    """

    part: Part
    fixed: torch.Tensor
    moving: torch.Tensor
    weight: torch.Tensor
    window: torch.Tensor
    first: torch.Tensor
    voxel: torch.Tensor

    def state(self, deformation: Deformation, iteration: int = 0) -> FieldState:
        """The displacement on `part`, as the terms want it: in the level's voxels, from the first of `moving`."""
        displacement = deformation.at(self.part) * self.window / self.voxel
        return FieldState(displacement + self.first, displacement, iteration)


@dataclass(frozen=True)
class RegionConfig:
    """How to descend.

    Attributes:
        iterations: of one level.
        learning_rate: of Adam, in the unit of the unknowns (mm for control points).
        final_rate: the rate falls along a cosine to this share of itself; 1 keeps it.
        diffusion: weight of the roughness.
        folding: weight of the penalty of determinants below `smallest_determinant`.
        smallest_determinant: see `folding`.
    """

    iterations: int = 200
    learning_rate: float = 0.3
    final_rate: float = 0.1
    diffusion: float = 0.05
    folding: float = 2.0
    smallest_determinant: float = 0.25


@dataclass(frozen=True)
class Descent:
    """The loss of every iteration, and its part that stands for the data alone."""

    losses: list[float] = field(default_factory=list)
    data_losses: list[float] = field(default_factory=list)


def level_of(volumes: RegionVolumes, stride: int) -> Level:
    """A region seen on every `stride`-th voxel, smoothed as that needs."""
    fixed, moving = volumes.fixed, volumes.moving
    if stride > 1:
        sigma = 0.4 * math.sqrt(stride**2 - 1)
        fixed, moving = gaussian(fixed, sigma), gaussian(moving, sigma)
    every = (
        slice(None),
        slice(None),
        slice(None, None, stride),
        slice(None, None, stride),
        slice(None, None, stride),
    )
    # The window reaches a little beyond the box, so that its neighbors take part in local statistics.
    ranges = _range_of(volumes.weight[every][0, 0])
    part = tuple(slice(r.start * stride, (r.stop - 1) * stride + 1, stride) for r in ranges)
    cut = (slice(None), slice(None), *part)
    device = fixed.device
    first = torch.tensor([float(r.start) for r in ranges[::-1]], device=device).view(1, 3, 1, 1, 1)
    voxel = torch.tensor([size * stride for size in volumes.spacing], device=device).view(1, 3, 1, 1, 1)
    return Level(
        (part[0], part[1], part[2]),
        fixed[cut].contiguous(),
        moving[every].contiguous(),
        volumes.weight[cut].contiguous(),
        volumes.window[cut].contiguous(),
        first,
        voxel,
    )


def optimize_region(
    deformation: Deformation,
    volumes: RegionVolumes,
    level: Level,
    terms: Sequence[Term],
    config: RegionConfig,
    callback: Callback | None = None,
) -> Descent:
    """Lower the weighted sum of the terms on a level of a region; the deformation's unknowns are changed in place.

    Args:
        deformation: what to change.
        volumes: the region.
        level: the region at the resolution at which the terms look.
        terms: of `terms.py`, on the level's voxels.
        config: see `RegionConfig`.
        callback: called as `callback(iteration, data loss)` after each iteration; may raise to cancel.

    Returns:
        The losses. Deterministic on a CPU.
    """
    optimizer = torch.optim.Adam(list(deformation.parameters()), lr=config.learning_rate)
    descent = Descent()
    for iteration in range(config.iterations):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate_share(iteration, config)
        optimizer.zero_grad(set_to_none=True)
        deformation.prepare()
        state = level.state(deformation, iteration)
        data = sum((term.weight * term(state) for term in terms), start=state.u.new_zeros(()))
        loss = data
        if config.diffusion > 0:
            loss = loss + config.diffusion * deformation.roughness()
        if config.folding > 0:
            loss = loss + config.folding * _fold_penalty(
                deformation, volumes, iteration, config.smallest_determinant
            )
        loss.backward()
        optimizer.step()
        descent.losses.append(float(loss.detach()))
        descent.data_losses.append(float(data.detach()))
        if callback is not None:
            callback(iteration, descent.data_losses[-1])
    return descent


@torch.no_grad()
def windowed(deformation: Deformation, volumes: RegionVolumes) -> torch.Tensor:
    """The displacement in mm along the grid's axes on the whole region, (1, 3, z, y, x)."""
    deformation.prepare()
    return deformation.at((slice(None), slice(None), slice(None))).detach() * volumes.window


def _fold_penalty(
    deformation: Deformation, volumes: RegionVolumes, iteration: int, smallest: float
) -> torch.Tensor:
    """Mean of max(0, smallest - det)^2 over a lattice of the region, one corner and one shift an iteration."""
    shape = volumes.window.shape[2:]
    if min(shape) < 2 * FOLD_STRIDE:
        return volumes.window.new_zeros(())
    shifts = (iteration % FOLD_STRIDE, iteration // 3 % FOLD_STRIDE, iteration // 9 % FOLD_STRIDE)
    z, y, x = (slice(shift, None, FOLD_STRIDE) for shift in shifts)
    voxel = volumes.window.new_tensor([size * FOLD_STRIDE for size in volumes.spacing]).view(1, 3, 1, 1, 1)
    u = deformation.at((z, y, x)) * volumes.window[:, :, z, y, x] / voxel
    determinant = corner_determinant(u, CORNERS[iteration % len(CORNERS)])
    return (smallest - determinant).clamp(min=0.0).square().mean()


def _range_of(weight: torch.Tensor) -> list[slice]:
    """The smallest ranges of z, y, x that hold everything above 0, at least two voxels each."""
    ranges = []
    for axis, size in enumerate(weight.shape):
        others = tuple(other for other in range(3) if other != axis)
        filled = (weight > 0).any(dim=others[1]).any(dim=others[0]).nonzero()
        first, last = int(filled[0]), int(filled[-1])
        if last == first:
            first, last = max(0, first - 1), min(size - 1, last + 1)
        ranges.append(slice(first, last + 1))
    return ranges


def _rate_share(iteration: int, config: RegionConfig) -> float:
    progress = iteration / max(1, config.iterations - 1)
    return config.final_rate + (1.0 - config.final_rate) * 0.5 * (1.0 + math.cos(math.pi * progress))
