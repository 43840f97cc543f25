"""Target registration error, with the displacement read by cubic B-splines as Learn2Reg does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..grid import Grid

FloatArray = NDArray[np.float64]

# The pole of the cubic B-spline's inverse filter (M. Unser, "Splines: a perfect fit", 1999, box 2).
POLE = np.sqrt(3.0) - 2.0


def target_registration_error(
    displacement: ArrayLike,
    fixed_points: ArrayLike,
    moving_points: ArrayLike,
    moving_spacing: Sequence[float],
) -> FloatArray:
    """Learn2Reg's landmark error |(p_fixed + u(p_fixed) - p_moving) * moving_spacing|.

    Fixed and moving volumes share one array geometry there; for volumes on different grids map the points in
    world space and use `point_distances`.

    Args:
        displacement: u (3, z, y, x) in voxels, components x, y, z; read by cubic B-splines, zero outside.
        fixed_points: (N, 3) voxel positions (x, y, z).
        moving_points: (N, 3) voxel positions (x, y, z).
        moving_spacing: (x, y, z) in mm.

    Returns:
        (N,) errors in mm.
    """
    fixed_points = np.asarray(fixed_points, dtype=np.float64)
    mapped = fixed_points + cubic_sample(displacement, fixed_points)
    return point_distances(mapped * np.asarray(moving_spacing), np.asarray(moving_points) * moving_spacing)


def point_distances(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Euclidean distances (N,) of corresponding points (N, 3)."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return np.linalg.norm(difference, axis=-1)


def relative_error(errors_mm: ArrayLike, grid: Grid) -> FloatArray:
    """rTRE: errors as fractions of the image's diagonal, all in mm (QUIZ, section 3)."""
    return np.asarray(errors_mm, dtype=np.float64) / float(np.linalg.norm(grid.extent))


def cubic_sample(volume: ArrayLike, voxel_points: ArrayLike, outside: float = 0.0) -> FloatArray:
    """Values of the interpolating cubic B-spline, mirrored at the outermost voxel centers.

    The same function as `scipy.ndimage.map_coordinates(order=3)`, to rounding.

    Args:
        volume: (C, z, y, x).
        voxel_points: (N, 3) in the order x, y, z.
        outside: the value beyond the outermost voxel centers.

    Returns:
        (N, C) in double precision.
    """
    coefficients = _spline_coefficients(np.asarray(volume))
    points = np.asarray(voxel_points, dtype=np.float64)[:, ::-1]
    size = np.asarray(coefficients.shape[1:])
    base = np.floor(points).astype(np.int64) - 1
    weights = _spline_weights(points - np.floor(points))
    values = np.zeros((len(points), len(coefficients)))
    for tap in np.ndindex(4, 4, 4):
        z, y, x = _mirrored(base + tap, size).T
        weight = weights[:, tap[0], 0] * weights[:, tap[1], 1] * weights[:, tap[2], 2]
        values += weight[:, None] * coefficients[:, z, y, x].T
    inside = np.all((points >= 0) & (points <= size - 1), axis=1)
    return np.where(inside[:, None], values, outside)


def _spline_coefficients(volume: NDArray[np.generic]) -> FloatArray:
    """The B-spline coefficients whose spline passes through the voxels (C, z, y, x), mirrored at the ends."""
    coefficients = np.array(volume, dtype=np.float64)
    for axis in range(1, coefficients.ndim):
        if coefficients.shape[axis] > 1:
            _filter_in_place(np.moveaxis(coefficients, axis, 0))
    return coefficients


def _filter_in_place(lines: FloatArray) -> None:
    """The inverse of the filter (1, 4, 1) / 6 along the first axis, as one causal and one anti-causal pass."""
    count = len(lines)
    lines *= 6.0
    period = 2 * count - 2
    steps = np.arange(count)
    powers = POLE**steps
    powers[1:-1] += POLE ** (period - steps[1:-1])
    lines[0] = np.tensordot(powers, lines, axes=1) / (1 - POLE**period)
    for i in range(1, count):
        lines[i] += POLE * lines[i - 1]
    lines[-1] = POLE / (POLE**2 - 1) * (lines[-1] + POLE * lines[-2])
    for i in range(count - 2, -1, -1):
        lines[i] = POLE * (lines[i + 1] - lines[i])


def _spline_weights(fraction: FloatArray) -> FloatArray:
    """Weights (N, 4, 3) of the four neighbors per axis for fractions (N, 3) past the second of them."""
    t = fraction
    return np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * (t + t**2 - t**3), t**3], axis=1) / 6


def _mirrored(index: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    period = np.maximum(2 * size - 2, 1)
    folded = np.abs(index) % period
    return np.where(folded < size, folded, period - folded)
