"""ConvexAdam 0.2.0 (Siebert et al., Learn2Reg), with its default parameters.

Setting, the same for every pair: the fixed volume resampled to 2 mm isotropic, the moving volume resampled onto
that grid by the given affine alignment, air (or the smallest value) outside; MIND-SSC features, float32 on a
CPU. The grid is extended to a multiple of 6 voxels, its grid spacing, because the package otherwise stretches
its field by up to five voxels over the volume; this is to its advantage.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from SAMRegistrationLib.field import DisplacementField, displacement_on
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.transforms import AffineTransform, CompositeTransform

from ..method import Outcome, Task

WORKING_SPACING_MM = 2.0
GRID_MULTIPLE = 6


class ConvexAdam:
    """The package's `convex_adam_pt` between two volumes on one grid; its field is taken back to world mm."""

    name = "convexadam-0.2.0"
    default_start: str | None = "affine"

    def load(self) -> None:
        try:
            from convexAdam import convex_adam_MIND  # noqa: F401 - only its import time is wanted here
        except ImportError as error:
            raise ImportError("ConvexAdam is not installed: pip install convexAdam==0.2.0 nibabel") from error

    def run(self, task: Task) -> Outcome:
        fixed, moving = read_image(task.pair.fixed), read_image(task.pair.moving)
        start = task.start or AffineTransform(task.pair.start_matrix())
        grid = working_grid(fixed.grid)
        aligned = displacement_on(start, grid).warp(moving)
        began = time.perf_counter()
        field = register_on_grid(fixed.resampled(grid).data, aligned.data, grid, task.device)
        seconds = {"convex_adam_pt": time.perf_counter() - began}
        settings = {"working_spacing_mm": WORKING_SPACING_MM, "parameters": "defaults", "dtype": "float32"}
        return Outcome(CompositeTransform([field, start]), seconds, settings)


def working_grid(fixed: Grid) -> Grid:
    """The fixed volume's box at the working spacing, extended at the far ends to a multiple of the grid step."""
    grid = fixed.resampled(WORKING_SPACING_MM)
    size = -(-np.asarray(grid.size) // GRID_MULTIPLE) * GRID_MULTIPLE
    return grid.cropped((0, 0, 0), tuple(size))


def register_on_grid(fixed: Any, moving: Any, grid: Grid, device: str) -> DisplacementField:
    """Run the package on two volumes (z, y, x) of one grid and take its field to world mm.

    The package returns voxels in array order, (z, y, x, 3) with components (z, y, x); fixed voxel p corresponds
    to moving voxel p + d(p).
    """
    from convexAdam.convex_adam_MIND import convex_adam_pt

    displacement = convex_adam_pt(fixed, moving, dtype=torch.float32, device=torch.device(device))
    x_first = np.ascontiguousarray(np.moveaxis(displacement[..., ::-1], -1, 0)[None], dtype=np.float32)
    field = DisplacementField.from_voxels(torch.from_numpy(x_first), grid)
    # Fixed voxels at the very border lie outside the working grid's outermost centers, where a field ends.
    return field.resampled(grid.padded(1))
