"""A final correction that meets landmarks exactly, as a chain of small steps that do not fold."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..field import DisplacementField
from ..grid import FloatArray, Grid
from ..sampling import voxel_mesh
from ..solvers.ops import smallest_corner_determinant

REACH_MM = 40.0
"""A landmark moves nothing further away than this."""

TOLERANCE_MM = 0.05
_SPACING_MM = 2.5
_ROUNDS = 4
_STEEPEST = 2.11
"""Largest slope of `wendland` times its reach."""

_LARGEST_STRAIN = 0.5
_STRAIN_OF_A_STEP = 0.15
_SMALLEST_DETERMINANT = 0.05
_SHORTENINGS = 6
_MOST_VOXELS = 1_000_000


def exact_correction(
    points: FloatArray, corrections: FloatArray, reach: float = REACH_MM, spacing: float = _SPACING_MM
) -> DisplacementField:
    """A field v with v(p) = d at every point, zero beyond `reach` mm of all points, that does not fold.

    The shortest interpolation by compactly supported radial functions (H. Wendland, "Piecewise polynomial,
    positive definite and compactly supported radial functions of minimal degree", 1995: the function that is
    twice differentiable in three dimensions) goes the whole way in several steps, each of which starts where the
    one before has led. A chain of maps that do not fold does not fold. What linear interpolation between voxels
    leaves is corrected in further rounds, and steps that would fold are shortened: pairs that contradict
    each other are then met only in part.

    Args:
        points: (N, 3) world positions in mm, no two the same.
        corrections: (N, 3) mm.
        reach: mm; longer where a correction is so long that it would fold.
        spacing: of the field's grid in mm.
    """
    longest = float(np.linalg.norm(corrections, axis=1).max())
    reach = max(reach, _STEEPEST * longest / _LARGEST_STRAIN)
    grid = _grid_around(points, corrections, reach, spacing)
    total = DisplacementField.zero(grid)
    target = points + corrections
    count = max(1, math.ceil(_STEEPEST * longest / reach / _STRAIN_OF_A_STEP))
    for _ in range(_ROUNDS):
        for step in range(count):
            reached = total.transform_points(points)
            remaining = (target - reached) / (count - step)
            total = _followed(total, reached, remaining, reach)
        if np.linalg.norm(total.transform_points(points) - target, axis=1).max() < TOLERANCE_MM:
            break
        count = 1
    return total


def wendland(distance: torch.Tensor) -> torch.Tensor:
    """(1 - r)^4 (4 r + 1) for distances as shares of the reach; 0 beyond."""
    return (1 - distance).clamp(min=0) ** 4 * (4 * distance + 1)


def _followed(total: DisplacementField, points: FloatArray, step: FloatArray, reach: float) -> DisplacementField:
    """The chain so far, followed by a step; shortened until it does not fold."""
    addition = _interpolating(total.grid, points, step, reach)
    for _ in range(_SHORTENINGS):
        longer = addition.compose(total)
        if float(smallest_corner_determinant(longer.to_voxels()).min()) > _SMALLEST_DETERMINANT:
            return longer
        addition = DisplacementField(addition.data / 2, addition.grid)
    return total


def _interpolating(grid: Grid, points: FloatArray, values: FloatArray, reach: float) -> DisplacementField:
    """The field through `values` at `points` as a sum of radial functions about the points."""
    columns = torch.from_numpy(points)
    matrix = wendland(torch.cdist(columns, columns) / reach).numpy()
    # A trace on the diagonal keeps pairs that nearly coincide from tearing at each other.
    coefficients = np.linalg.solve(matrix + 1e-6 * np.eye(len(points)), values)
    field = DisplacementField.zero(grid)
    for point, weights in zip(points, coefficients.tolist(), strict=True):
        lower, upper = _voxels_within(grid, point, reach)
        near = grid.cropped(lower, upper)
        world = voxel_mesh(near.shape, near.voxel_to_world)
        squared = sum(((world[axis] - float(point[axis])).square_() for axis in range(3)), start=torch.zeros(()))
        kernel = wendland(squared.sqrt() / reach)
        x, y, z = (slice(first, last) for first, last in zip(lower, upper, strict=True))
        for axis in range(3):
            field.data[0, axis, z, y, x].add_(kernel, alpha=weights[axis])
    return field


def _voxels_within(grid: Grid, point: FloatArray, reach: float) -> tuple[list[int], list[int]]:
    center = grid.to_voxel(point)
    radius = reach / np.asarray(grid.spacing)
    size = np.asarray(grid.size)
    lower = np.clip(np.floor(center - radius).astype(int), 0, size - 1)
    upper = np.clip(np.ceil(center + radius).astype(int) + 1, lower + 1, size)
    return lower.tolist(), upper.tolist()


def _grid_around(points: FloatArray, corrections: FloatArray, reach: float, spacing: float) -> Grid:
    """A grid along the world's axes around all places that may move, one voxel larger."""
    ends = np.vstack([points, points + corrections])
    lower, upper = ends.min(axis=0) - reach - spacing, ends.max(axis=0) + reach + spacing
    spacing = max(spacing, float(np.prod(upper - lower) / _MOST_VOXELS) ** (1 / 3))
    size = [math.ceil(extent / spacing) + 1 for extent in (upper - lower).tolist()]
    return Grid((size[0], size[1], size[2]), (spacing,) * 3, tuple(lower.tolist()))
