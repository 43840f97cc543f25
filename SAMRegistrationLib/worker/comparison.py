"""The request `compare`: pictures of how well two volumes agree under a transform, and the place to look at first.

It takes `fixed`, `moving`, `transform` (files; the transform maps from fixed to moving world), `output` (folder to
write into) and `views`, of "checkerboard", "difference" and "jacobian". The result holds the file of every view
(on the fixed grid), `limit` (below which 99 % of the absolute differences lie) and `worst`: `position` (LPS mm),
`folds` (whether the map folds there) and `value` (the determinant, or the mean absolute difference around).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UsageError
from ..field import displacement_on
from ..files import require_writable_folder, staged_outputs
from ..image import Image
from ..image_io import read_image, write_image
from ..sampling import Interpolation
from ..transform_io import read_transform
from .dispatch import Task

VIEWS = ("checkerboard", "difference", "jacobian")
DIVISIONS = 6
"""Squares of the checkerboard along every axis."""

BLOCK = 8
"""Edge of the blocks, in voxels, over which differences are averaged."""


def compare(
    task: Task, *, fixed: str, moving: str, transform: str, output: str, views: list | None = None
) -> dict[str, Any]:
    """Write views on a result; see the module for what is taken and given."""
    wanted = views or []
    if unknown := [view for view in wanted if view not in VIEWS]:
        raise UsageError(f"there is no view {unknown[0]!r}; there are {', '.join(VIEWS)}")
    folder = Path(output).absolute()
    task.progress("read", 0.0)
    fixed_image, moving_image = read_image(fixed), read_image(moving)
    grid = fixed_image.grid
    field = displacement_on(read_transform(transform), grid)
    task.progress("compare", 0.3)
    warped = field.warp(moving_image).data.float()
    inside = moving_image.with_data(torch.ones_like(moving_image.data, dtype=torch.float32))
    known = field.warp(inside, Interpolation.NEAREST, default=0).data > 0.5
    values = fixed_image.data.float()
    difference = torch.where(known, values - warped, torch.zeros(()))
    task.progress("compare", 0.6)
    determinant = field.jacobian_determinant()[0, 0]
    pictures = {
        "checkerboard": lambda: torch.where(_checks(grid.shape), warped, values),
        "difference": lambda: difference,
        "jacobian": lambda: determinant,
    }
    require_writable_folder(folder.parent)
    with staged_outputs(folder, 4 * grid.number_of_voxels * len(wanted)) as staging:
        for view in wanted:
            task.progress("write", 0.8)
            picture = Image(pictures[view](), grid, "float32")
            write_image(picture, staging / f"{view}.nrrd", compress=False)
        task.finalize()
    worst = _worst(determinant, difference.abs())
    place = {**worst, "position": grid.to_world(worst["position"]).tolist()}
    limit = float(np.percentile(difference.abs().numpy(), 99))
    return {**{view: str(folder / f"{view}.nrrd") for view in wanted}, "limit": limit, "worst": place}


def _checks(shape: tuple[int, int, int]) -> Tensor:
    """Every second square of a checkerboard (z, y, x)."""
    k, j, i = torch.meshgrid(*(torch.arange(n) * DIVISIONS // n for n in shape), indexing="ij")
    return (i + j + k) % 2 == 1


def _worst(determinant: Tensor, error: Tensor) -> dict[str, Any]:
    """Where the map folds most, if it does, else where the volumes agree least; in voxels x, y, z."""
    lowest = float(determinant.min())
    if lowest <= 0:
        place = np.unravel_index(int(determinant.argmin()), determinant.shape)
        return {"position": [int(n) for n in place[::-1]], "folds": True, "value": lowest}
    block = [min(BLOCK, n) for n in error.shape]
    means = functional.avg_pool3d(error[None, None], block, block)[0, 0]
    place = np.unravel_index(int(means.argmax()), means.shape)
    middle = [(int(n) + 0.5) * size - 0.5 for n, size in zip(place, block, strict=True)]
    return {"position": middle[::-1], "folds": False, "value": float(means.max())}
