"""The displacement at one iteration of a descent, as its terms ask for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.ops import Part, at_parts, upsample


class FieldState:
    """The displacement at one iteration.

    Args:
        u: total displacement (1, 3, z, y, x) in voxels of the field grid.
        residual: what the optimization has added to the initial field, the same shape.
        iteration: number from 0, for terms that look at another part of the voxels each time.
    """

    def __init__(self, u: torch.Tensor, residual: torch.Tensor, iteration: int = 0) -> None:
        self._u, self._residual = u, residual
        self.shape = tuple(u.shape[2:])
        self.iteration = iteration
        self._resized: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self._u.device

    @property
    def u(self) -> torch.Tensor:
        return self._u

    @property
    def residual(self) -> torch.Tensor:
        return self._residual

    def u_at(self, shape: Sequence[int]) -> torch.Tensor:
        """The total displacement on a grid of `shape` over the same box, in its voxels."""
        key = tuple(shape)
        if key not in self._resized:
            self._resized[key] = upsample(self.u, key)
        return self._resized[key]

    def at(self, parts: Sequence[Part]) -> torch.Tensor:
        """The total displacement at strided parts of the field grid, all of one shape: (n, 3, z', y', x')."""
        return at_parts(self.u, parts)


class ControlledState(FieldState):
    """A displacement given by control points, which is computed only where it is asked for.

    Terms look at an eighth of the voxels in an iteration; computing all of them took as long as the terms.

    Args:
        initial: (1, 3, z, y, x) field that the residual is added to.
        control: (1, 3, z', y', x') residual at the control points, in voxels of the field grid.
        iteration: as above.
    """

    def __init__(self, initial: torch.Tensor, control: torch.Tensor, iteration: int = 0) -> None:
        super().__init__(initial, control, iteration)
        self._initial, self._control = initial, control
        self._full: torch.Tensor | None = None

    @property
    def u(self) -> torch.Tensor:
        return self._initial + self.residual

    @property
    def residual(self) -> torch.Tensor:
        if self._full is None:
            self._full = resized_values(self._control, self.shape)
        return self._full

    def at(self, parts: Sequence[Part]) -> torch.Tensor:
        return torch.stack([self._at(part) for part in parts])

    def _at(self, part: Part) -> torch.Tensor:
        depth, height, width = self._control.shape[2:]
        along_z, along_y, along_x = (
            linear_weights(size, new)[lattice].contiguous()
            for size, new, lattice in zip((depth, height, width), self.shape, part, strict=True)
        )
        # Along x first, where one product does it: the order of memory decides what the others cost.
        values = self._control.reshape(-1, width) @ along_x.t()
        values = along_z.expand(3, -1, -1).bmm(values.view(3, depth, -1)).view(-1, height, len(along_x))
        values = along_y.expand(len(values), -1, -1).bmm(values).unflatten(0, (3, -1))
        return values + self._initial[0, :, part[0], part[1], part[2]]


def resized_values(u: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resample without rescaling: control points hold voxels of the field grid."""
    if tuple(u.shape[2:]) == tuple(shape):
        return u
    return F.interpolate(u, size=tuple(shape), mode="trilinear", align_corners=False)


@functools.lru_cache(maxsize=16)
def linear_weights(size: int, new_size: int) -> torch.Tensor:
    """The matrix (new size, size) by which linear interpolation resizes along an axis; not to be changed."""
    with torch.inference_mode(False):
        return F.interpolate(torch.eye(size)[None], size=new_size, mode="linear", align_corners=False)[0].t()
