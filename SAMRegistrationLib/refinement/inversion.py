"""Which fixed points a map takes to given moving points."""

from __future__ import annotations

import numpy as np

from ..transforms import FloatArray, Transform, transform_points

_STEP_MM = 0.5
_SMALLEST_DETERMINANT = 0.05


def inverse_points(
    transform: Transform,
    moving: FloatArray,
    start: FloatArray | None = None,
    iterations: int = 40,
    tolerance: float = 1e-4,
) -> tuple[FloatArray, FloatArray]:
    """Fixed world points (N, 3) that a map takes to moving world points (N, 3), by Newton's method.

    Args:
        transform: from fixed to moving world.
        moving: the points to be reached.
        start: (N, 3) where to begin; `moving` by default.
        iterations: at most so many.
        tolerance: stop when all residuals are below, in mm.

    Returns:
        The points, and their residuals |T(x) - y| in mm (N,), large for a point that is reached from nowhere.
    """
    target = np.asarray(moving, dtype=np.float64)
    found = np.array(target if start is None else start, dtype=np.float64)
    error = transform_points(transform, found) - target
    residual = np.linalg.norm(error, axis=1)
    step = np.ones(len(found))
    for _ in range(iterations):
        if not len(found) or residual.max() < tolerance:
            break
        wanted = np.linalg.solve(_derivative(transform, found), error[..., None])[..., 0]
        tried = found - step[:, None] * wanted
        tried_error = transform_points(transform, tried) - target
        tried_residual = np.linalg.norm(tried_error, axis=1)
        better = tried_residual < residual
        found[better], error[better], residual[better] = tried[better], tried_error[better], tried_residual[better]
        step = np.where(better, np.minimum(1.0, 2 * step), step / 2)
    return found, residual


def _derivative(transform: Transform, points: FloatArray) -> FloatArray:
    """(N, 3, 3) by central differences; the identity where the map folds."""
    columns = []
    for axis in range(3):
        step = np.eye(3)[axis] * _STEP_MM
        mapped = transform_points(transform, points + step) - transform_points(transform, points - step)
        columns.append(mapped / (2 * _STEP_MM))
    matrices = np.stack(columns, axis=-1)
    matrices[np.abs(np.linalg.det(matrices)) < _SMALLEST_DETERMINANT] = np.eye(3)
    return matrices
