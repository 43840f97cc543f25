"""deedsBCV (Heinrich): dense displacement sampling with MIND-SSC, from its own linear registration or a given
start.

Its two programs, built from their source by the user, lie in the folder of the setting `folder`
(`--set deeds.folder=DIR`) or of the environment variable `DEEDS_FOLDER`.

Setting: its defaults, on the grid that its authors use for CT: 2 mm isotropic over the fixed volume's box, the
moving volume brought there by the alignment it begins with (the programs ignore headers).
"""

from __future__ import annotations

import subprocess
import time
from typing import Any

import numpy as np
import SimpleITK as sitk

from .contract import Matrix, Outcome, Task
from .convex_adam import working_grid
from .programs import find_program
from .volumes import as_sitk, lowest_value, written_field

HINT = "build deedsBCV with its Makefile, then --set deeds.folder=DIR"
CONTROL_SPACING = 4
"""Of the last level of its default grid, in voxels."""


def load() -> None:
    """Where the programs are is known only with the task's settings."""


def register(task: Task) -> Outcome:
    """Displacements on the working grid, then the alignment that it began with."""
    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (task.fixed, task.moving))
    grid = working_grid(fixed)
    for name, image, transform in (("fixed", fixed, np.eye(4)), ("moving", moving, task.begin)):
        on_grid = sitk.Resample(image, grid, as_sitk(transform), sitk.sitkLinear, lowest_value(image))
        sitk.WriteImage(on_grid, str(task.folder / f"{name}.nii.gz"))
    seconds: dict[str, float] = {}
    linear: list[str] = []
    if task.start is None:
        began = time.perf_counter()
        _run(task, "linearBCV", [])
        seconds["linear"] = time.perf_counter() - began
        linear = ["-A", str(task.folder / "deeds_matrix.txt")]
    began = time.perf_counter()
    _run(task, "deedsBCV", linear)
    seconds["deformable"] = time.perf_counter() - began
    field = displacement_of(task, grid, bool(linear))
    return Outcome((field, task.begin), seconds, {"parameters": "defaults", "working_spacing_mm": 2.0})


def _run(task: Task, name: str, more: list[str]) -> None:
    program = find_program(name, task, "DEEDS_FOLDER", HINT)
    volumes = ["-F", str(task.folder / "fixed.nii.gz"), "-M", str(task.folder / "moving.nii.gz")]
    subprocess.run([program, *volumes, "-O", str(task.folder / "deeds"), *more], check=True, cwd=task.folder)


def displacement_of(task: Task, grid: sitk.Image, with_linear: bool) -> Any:
    """File of the whole map's displacements, one voxel larger than the grid on every side.

    The programs work in voxels: voxel p = (x, y, z) goes to A p + d(p). Their matrix file holds A transposed;
    their displacement file holds float32 components y, x, z on a coarse grid whose point c lies at voxel c m /
    m', where m' is the number of voxels m along that axis, divided by the control spacing and rounded down.
    """
    size = np.asarray(grid.GetSize())
    coarse = size // CONTROL_SPACING
    numbers = np.fromfile(task.folder / "deeds_displacements.dat", dtype=np.float32).reshape(3, *coarse[::-1])
    control = sitk.GetImageFromArray(np.moveaxis(numbers[[1, 0, 2]], 0, -1), isVector=True)
    control.SetSpacing((size / coarse).tolist())
    padded = sitk.ConstantPad(grid, [1] * 3, [1] * 3)
    voxels = _voxels_of(padded)
    at_voxels = sitk.Image(padded.GetSize(), sitk.sitkFloat32)
    at_voxels.SetOrigin([-1.0] * 3)
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(at_voxels)
    resampler.SetUseNearestNeighborExtrapolator(True)
    displacement = sitk.GetArrayFromImage(resampler.Execute(control)).astype(np.float64)
    if with_linear:
        matrix = read_matrix(task)
        displacement += voxels @ matrix[:3, :3].T + matrix[:3, 3] - voxels
    to_world = np.reshape(grid.GetDirection(), (3, 3)) * np.asarray(grid.GetSpacing())
    return written_field(displacement @ to_world.T, padded, task.folder / "displacement.mha")


def _voxels_of(padded: sitk.Image) -> Any:
    """Voxel coordinates (z, y, x, 3) in the order x, y, z; the first voxel is -1."""
    axes = [np.arange(n, dtype=np.float64) - 1 for n in reversed(padded.GetSize())]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y, z], axis=-1)


def read_matrix(task: Task) -> Matrix:
    """The linear map of voxels."""
    return np.loadtxt(task.folder / "deeds_matrix.txt", dtype=np.float64).reshape(4, 4).T
