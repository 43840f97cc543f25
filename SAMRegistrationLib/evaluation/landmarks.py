"""Landmarks before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..field import DisplacementField
from ..grid import Grid
from ..metrics import cubic_sample, distribution, point_distances, relative_error
from ..points import PointSet
from ..transforms import Transform, transform_points


def evaluate_landmarks(
    transform: Transform,
    field: DisplacementField,
    fixed: PointSet,
    moving: PointSet,
    region: torch.Tensor | None,
) -> dict[str, Any]:
    """The part `landmarks` of an evaluation.

    Args:
        transform: what is measured.
        field: the same as a displacement on the fixed grid.
        fixed: landmarks in fixed world space.
        moving: corresponding landmarks in moving world space.
        region: voxels of the fixed grid (z, y, x); landmarks elsewhere are left out.

    Raises:
        InputError: if the numbers of landmarks differ.
    """
    if len(fixed) != len(moving):
        raise InputError(f"{len(fixed)} fixed and {len(moving)} moving landmarks do not correspond")
    if region is not None:
        inside = _points_inside(fixed, field.grid, region.cpu().numpy())
        fixed, moving = fixed.selected(inside), moving.selected(inside)
    if not len(fixed):
        return {"count": 0}
    errors = {
        "before": point_distances(fixed.points, moving.points),
        "after": point_distances(_mapped_points(transform, field, fixed.points), moving.points),
    }
    return {
        "count": len(fixed),
        "mean": {
            state: {
                **{f"{name}_mm": value for name, value in distribution(values).items()},
                "mean_relative": float(relative_error(values, field.grid).mean()),
            }
            for state, values in errors.items()
        },
        "per_landmark": [
            {"name": label or str(number), "before_mm": before, "after_mm": after}
            for number, (label, before, after) in enumerate(
                zip(fixed.labels, *(values.tolist() for values in errors.values()), strict=True), start=1
            )
        ],
    }


def _mapped_points(transform: Transform, field: DisplacementField, points: NDArray[np.float64]) -> NDArray[Any]:
    """Where fixed points come to lie: inside the grid by cubic splines (Learn2Reg), outside by the transform."""
    voxel = field.grid.to_voxel(points)
    inside = np.all((voxel >= 0) & (voxel <= np.asarray(field.grid.size) - 1), axis=1)
    mapped = transform_points(transform, points)
    mapped[inside] = points[inside] + cubic_sample(field.data[0].cpu().numpy(), voxel[inside])
    return mapped


def _points_inside(points: PointSet, grid: Grid, region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    nearest = np.rint(grid.to_voxel(points.points)).astype(int)
    valid = np.all((nearest >= 0) & (nearest < np.asarray(grid.size)), axis=1)
    x, y, z = np.where(valid[:, None], nearest, 0).T
    return valid & region[z, y, x]
