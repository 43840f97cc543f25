"""The voxels that a term looks at in each iteration of a descent, and where the field takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.lattice import lattice_period, lattice_slices
from SAMRegistrationLib.solvers.ops import Part, identity_positions


@dataclass(frozen=True)
class Look:
    """The voxels that an iteration looks at.

    Attributes:
        part: the lattice that they belong to.
        rows: (P,) their numbers in the volume.
        chosen: (P,) their numbers in the lattice, None for all of it.
        count: of the lattice's voxels, with those that have no weight.
    """

    part: Part
    rows: torch.Tensor
    chosen: torch.Tensor | None
    count: int


class Looks:
    """What all iterations look at: every `lattice`-th voxel in turn (see `lattice_slices`) that has a weight.

    Args:
        shape: (z, y, x) of the grid.
        lattice: step of the voxels, at least 1.
        voxel_weight: (1, 1, z, y, x), not negative, None for all alike.
        device: where to keep them.
    """

    def __init__(
        self, shape: Sequence[int], lattice: int, voxel_weight: torch.Tensor | None, device: torch.device
    ) -> None:
        self.period = lattice_period(lattice)
        self._shape = tuple(shape)
        self._weight = None if voxel_weight is None else voxel_weight.float().flatten()
        self._positions = identity_positions(shape, device)[0].flatten(1)
        rows = torch.arange(math.prod(shape), device=device).view(self._shape)
        self._looks = [self._look(lattice_slices(iteration, lattice), rows) for iteration in range(self.period)]

    def at(self, iteration: int) -> Look:
        return self._looks[iteration % self.period]

    def all_rows(self) -> torch.Tensor:
        """The numbers of all voxels that any iteration looks at, in ascending order."""
        return torch.cat([look.rows for look in self._looks]).sort().values

    def displaced(self, state: FieldState, look: Look) -> torch.Tensor:
        """The positions x + u(x) of the voxels of a look, (P, 3)."""
        z, y, x = look.part
        same = state.shape == self._shape
        displacement = state.at([look.part])[0] if same else state.u_at(self._shape)[0, :, z, y, x]
        displacement = displacement.flatten(1)
        if look.chosen is not None:
            displacement = displacement.index_select(1, look.chosen)
        return (self._positions.index_select(1, look.rows) + displacement).t()

    def weights(self, rows: torch.Tensor) -> torch.Tensor | None:
        """The weights (P,) of voxels, None where all count alike."""
        return None if self._weight is None else self._weight.index_select(0, rows)

    def _look(self, part: Part, rows: torch.Tensor) -> Look:
        rows = rows[part].flatten()
        if self._weight is None:
            return Look(part, rows, None, len(rows))
        chosen = (self._weight[rows] > 0).nonzero()[:, 0]
        return Look(part, rows[chosen], chosen, len(rows))
