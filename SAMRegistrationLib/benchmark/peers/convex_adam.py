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
import SimpleITK as sitk

from .contract import NotInstalled, Outcome, Task
from .volumes import as_sitk, lowest_value, written_field

WORKING_SPACING_MM = 2.0
GRID_MULTIPLE = 6


def load() -> None:
    """Its import takes torch along."""
    try:
        from convexAdam import convex_adam_MIND  # noqa: F401
    except ImportError as error:
        raise NotInstalled("ConvexAdam is not installed: pip install convexAdam==0.2.0 nibabel") from error


def register(task: Task) -> Outcome:
    """Displacements on the working grid, then the start."""
    import torch

    torch.set_num_threads(task.threads)
    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (task.fixed, task.moving))
    grid = working_grid(fixed)
    on_grid = sitk.Resample(fixed, grid, sitk.Transform(), sitk.sitkLinear, lowest_value(fixed))
    aligned = sitk.Resample(moving, grid, as_sitk(task.begin), sitk.sitkLinear, lowest_value(moving))
    began = time.perf_counter()
    displacement = register_on_grid(on_grid, aligned, task.device)
    seconds = {"convex_adam_pt": time.perf_counter() - began}
    settings = {"working_spacing_mm": WORKING_SPACING_MM, "parameters": "defaults", "dtype": "float32"}
    return Outcome((_field_file(displacement, grid, task), task.begin), seconds, settings)


def working_grid(fixed: sitk.Image) -> sitk.Image:
    """An empty volume over the fixed one's box, 2 mm isotropic, extended at the far ends to the grid step."""
    spacing, size = np.asarray(fixed.GetSpacing()), np.asarray(fixed.GetSize())
    wanted = np.maximum(np.ceil(size * spacing / WORKING_SPACING_MM - 1e-3), 1).astype(int)
    axes = np.reshape(fixed.GetDirection(), (3, 3))
    middle = np.asarray(fixed.GetOrigin()) + axes @ ((size - 1) / 2 * spacing)
    origin = middle - axes @ ((wanted - 1) / 2 * WORKING_SPACING_MM)
    extended = -(-wanted // GRID_MULTIPLE) * GRID_MULTIPLE
    grid = sitk.Image(extended.tolist(), sitk.sitkFloat32)
    grid.SetSpacing((WORKING_SPACING_MM,) * 3)
    grid.SetOrigin(origin.tolist())
    grid.SetDirection(fixed.GetDirection())
    return grid


def register_on_grid(fixed: sitk.Image, moving: sitk.Image, device: str) -> Any:
    """Run the package on two volumes of one grid; displacements (z, y, x, 3) in mm with LPS components.

    The package returns voxels in array order, (z, y, x, 3) with components (z, y, x); fixed voxel p corresponds
    to moving voxel p + d(p).
    """
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    volumes = [torch.from_numpy(sitk.GetArrayFromImage(image)) for image in (fixed, moving)]
    voxels = convex_adam_pt(*volumes, dtype=torch.float32, device=torch.device(device))[..., ::-1]
    to_world = np.reshape(fixed.GetDirection(), (3, 3)) * np.asarray(fixed.GetSpacing())
    return voxels @ to_world.T


def _field_file(displacement: Any, grid: sitk.Image, task: Task) -> Any:
    """The field as a file, one voxel larger on every side: fixed voxels at the border lie outside otherwise."""
    padded = np.pad(displacement, [(1, 1)] * 3 + [(0, 0)], mode="edge")
    larger = sitk.ConstantPad(grid, [1] * 3, [1] * 3)
    return written_field(padded, larger, task.folder / "displacement.mha")
