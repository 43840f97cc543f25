"""NiftyReg: reg_aladin and reg_f3d, where their programs are installed.

They lie in the folder of the setting `folder` (`--set niftyreg.folder=DIR`), of the environment variable
`NIFTYREG_FOLDER`, or on the path.

Setting: its defaults (block matching; normalized mutual information, control points every 5 voxels, bending
penalty), with local correlation of 5 voxels instead where contrasts agree, as its authors advise for CT.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .contract import Outcome, Task
from .greedy import from_ras, to_ras
from .programs import find_program
from .volumes import read_matrix_file, written_nonnegative

HINT = "install NiftyReg, then --set niftyreg.folder=DIR"


def load() -> None:
    """Where the programs are is known only with the task's settings."""


def register(task: Task) -> Outcome:
    """Displacements of the whole map on the fixed grid."""
    names = ("fixed", "moving")
    fixed, moving = (str(written_nonnegative(getattr(task, name), task.folder, name)) for name in names)
    begin, affine, spline, field = (
        str(task.folder / name) for name in ("begin.txt", "affine.txt", "spline.nii.gz", "field.nii.gz")
    )
    np.savetxt(begin, to_ras(task.begin), fmt="%.12g")
    volumes = ["-ref", fixed, "-flo", moving]
    threads = ["-omp", str(task.threads)]
    seconds: dict[str, float] = {}
    if task.start is None:
        began = time.perf_counter()
        rest = ["-inaff", begin, "-aff", affine, "-res", str(task.folder / "aligned.nii.gz")]
        _run(task, "reg_aladin", [*volumes, *rest, *threads])
        seconds["affine"] = time.perf_counter() - began
    else:
        affine = begin
    metric = ["--lncc", "5"] if task.same_contrast else []
    began = time.perf_counter()
    rest = ["-aff", affine, "-cpp", spline, "-res", str(task.folder / "warped.nii.gz")]
    _run(task, "reg_f3d", [*volumes, *rest, *metric, *threads])
    _run(task, "reg_transform", ["-ref", fixed, "-disp", spline, field])
    seconds["deformable"] = time.perf_counter() - began
    settings = {"metric": " ".join(metric) or "nmi", "affine": from_ras(read_matrix_file(Path(affine))).tolist()}
    return Outcome((_in_lps(field, task),), seconds, settings)


def _run(task: Task, name: str, arguments: list[str]) -> None:
    program = find_program(name, task, "NIFTYREG_FOLDER", HINT)
    subprocess.run([program, *arguments], check=True, cwd=task.folder)


def _in_lps(field: str, task: Task) -> Any:
    """NiftyReg's displacements (RAS mm, a fifth dimension in NIfTI) as a vector image in LPS."""
    image = sitk.ReadImage(field)
    if image.GetNumberOfComponentsPerPixel() != 3:
        image = sitk.Compose([_volume(image, component) for component in range(3)])
    x, y, z = (sitk.Cast(sitk.VectorIndexSelectionCast(image, i), sitk.sitkFloat32) for i in range(3))
    file = task.folder / "displacement.mha"
    sitk.WriteImage(sitk.Compose([-x, -y, z]), str(file))
    return file


def _volume(image: sitk.Image, component: int) -> sitk.Image:
    """One of the volumes along the last dimension."""
    size = list(image.GetSize())
    index = [0] * (len(size) - 1) + [component]
    return sitk.Extract(image, [*size[:3], *[0] * (len(size) - 3)], index)
