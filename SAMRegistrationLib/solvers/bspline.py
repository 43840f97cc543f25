"""A displacement as a cubic B-spline, evaluated on any part of its grid as three small matrix products.

A spline on a coarse lattice of control points is smooth by construction, has few unknowns, and costs only as much
as the voxels where it is wanted: the descent of a small region needs no pass over a whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Part = tuple[slice, slice, slice]
"""Ranges of z, y and x."""


class SplineField:
    """The displacement of a free-form deformation, in mm along the axes of its grid.

    Args:
        shape: (z, y, x) of the grid.
        spacing: (x, y, z) mm of its voxels.
        control_mm: distance of control points along every axis, about.
        device: of the control points.

    Attributes:
        control: (3, Z, Y, X) the control points' displacements in mm, components (x, y, z); at rest to begin with.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        control_mm: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = tuple(shape)
        self.spacing = tuple(spacing)
        self._steps: list[float] = []
        self._matrices: list[torch.Tensor] = []
        for size, millimeters in zip(self.shape, self.spacing[::-1], strict=True):
            intervals = max(1, round((size - 1) * millimeters / control_mm))
            self._steps.append(max(size - 1, 1) * millimeters / intervals)
            positions = torch.arange(size, dtype=torch.float64) * (intervals / max(size - 1, 1))
            self._matrices.append(spline_matrix(positions, intervals + 3).float().to(device))
        counts = [matrix.shape[1] for matrix in self._matrices]
        self.control = torch.zeros((3, *counts), device=device, requires_grad=True)

    def at(self, part: Part) -> torch.Tensor:
        """The displacement in mm on a part of the grid, (1, 3, z, y, x), differentiable."""
        return _products(self.control, [matrix[rows] for matrix, rows in zip(self._matrices, part, strict=True)])

    def whole(self) -> torch.Tensor:
        """The displacement in mm on the whole grid, (1, 3, z, y, x)."""
        return self.at((slice(None), slice(None), slice(None)))

    def roughness(self) -> torch.Tensor:
        """Mean squared gradient (mm per mm) over the control points, summed over axes and components."""
        total = self.control.new_zeros(())
        for axis, step in enumerate(self._steps, start=1):
            total = total + (self.control.diff(dim=axis) / step).square().sum(0).mean()
        return total

    @torch.no_grad()
    def fit(self, displacement: torch.Tensor) -> None:
        """Take the control points whose spline is closest to a displacement in mm, (1, 3, z, y, x) on the grid."""
        inverses = [torch.linalg.pinv(matrix.double()).to(matrix) for matrix in self._matrices]
        self.control.copy_(_products(displacement[0], inverses)[0])


def spline_matrix(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Weights (P, count) of cubic B-splines at -1, 0, 1, ... for positions (P,) from 0 to count - 3."""
    offsets = torch.arange(count, dtype=positions.dtype, device=positions.device) - 1
    distance = (positions[:, None] - offsets).abs()
    near = 2.0 / 3.0 - distance.square() + 0.5 * distance**3
    far = (2.0 - distance).clamp(min=0.0) ** 3 / 6.0
    return torch.where(distance < 1.0, near, far)


def _products(values: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """(C, Z, Y, X) values multiplied by a matrix along each of z, y, x: (1, C, z, y, x)."""
    along_z, along_y, along_x = matrices
    values = values @ along_x.T
    values = along_y @ values
    return (along_z @ values.flatten(2)).unflatten(2, values.shape[2:])[None]
