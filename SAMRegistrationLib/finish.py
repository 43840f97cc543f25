"""The end of a registration: the map as it is handed out, and how good it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from .field import DisplacementField, displacement_on
from .image import Image
from .methods.problem import Problem
from .metrics import field_quality
from .report import similarity_under
from .sampling import Outside
from .transforms import CompositeTransform, Transform

LEAST_MEASURED_VOXELS = 8
"""Along every axis, where the quality of the field is measured."""

MOST_VOXELS_COMPARED = 1_000_000
"""Where the similarity is measured."""


def final_transform(problem: Problem) -> Transform:
    """The map with its displacement on the problem's device, given wherever the fixed volume is."""
    found = problem.field()
    if found is None:
        return problem.initial
    # The field ends half a voxel inside its box, where ITK would stop it abruptly.
    reach = found.grid.padded(1)
    return CompositeTransform([found.resampled(reach, Outside.EDGE), problem.initial])


def placed(transform: Transform, device: torch.device | str) -> Transform:
    """The same map with its displacements on a device."""
    if isinstance(transform, CompositeTransform):
        return CompositeTransform(placed(part, device) for part in transform.transforms)
    return transform.to(device) if isinstance(transform, DisplacementField) else transform


def judged(
    transform: Transform,
    volumes: tuple[Image, Image],
    device: torch.device,
    displacement: DisplacementField | None = None,
) -> dict[str, Any]:
    """Similarity before and after, and the quality of the field, as the report wants them.

    Args:
        transform: from fixed to moving world.
        volumes: fixed and moving.
        device: where to compute; these are dozens of passes over the volumes.
        displacement: the map on the fixed grid, where it is known there already.
    """
    fixed, moving = volumes
    there = placed(transform, device)
    field = displacement or displacement_on(there, fixed.grid, device)
    # A volume of very few slices is measured between them too: derivatives need neighbors.
    size = [max(n, LEAST_MEASURED_VOXELS) for n in fixed.grid.size]
    enough = size == list(fixed.grid.size)
    measured = field if enough else displacement_on(there, fixed.grid.resized(size), device)
    looked_at, compared = _thinned(field, fixed)
    nothing = DisplacementField.zero(looked_at.grid, device)
    return {
        "similarity_before": similarity_under(nothing, compared, moving),
        "similarity_after": similarity_under(looked_at, compared, moving),
        "field": field_quality(measured.to_voxels()),
    }


def _thinned(field: DisplacementField, fixed: Image) -> tuple[DisplacementField, Image]:
    """Every so many voxels of both along each axis: a million say as well how alike two volumes are."""
    step = math.ceil((fixed.grid.number_of_voxels / MOST_VOXELS_COMPARED) ** (1 / 3))
    if step <= 1:
        return field, fixed
    grid = fixed.grid.strided(step)
    values, u = (data[..., ::step, ::step, ::step].contiguous() for data in (fixed.data, field.data))
    return DisplacementField(u, grid), replace(fixed, data=values, grid=grid)
