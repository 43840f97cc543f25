"""plastimatch: affine and B-spline.

Setting: stages as in its own tutorial for CT: affine by gradient descent on volumes coarser by 4x4x2 and 2x2x1
(100 iterations each), then three B-spline stages (grid 60, 30, 15 mm; volumes coarser by 4x4x2, 2x2x1, 1x1x1; 50
iterations each, curvature penalty 0.005), mean squared error where contrasts agree, Mattes mutual information
where they differ. The moving volume is brought onto the fixed grid by the affine before the B-spline, which then
begins at nothing. With the setting `mask` the metric counts in the fixed volume's mask.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import SimpleITK as sitk

from .contract import Matrix, NotInstalled, Outcome, Task
from .volumes import as_sitk, lowest_value, matrix_of, read_nonnegative, resampled, written_mask

AFFINE_ITERATIONS, BSPLINE_ITERATIONS = 100, 50
PENALTY = 0.005
AFFINE_LEVELS = ("4 4 2", "2 2 1")
LEVELS = (("4 4 2", 60), ("2 2 1", 30), ("1 1 1", 15))


def load() -> None:
    """Where the program is is known only with the task's settings."""


def register(task: Task) -> Outcome:
    """Affine (unless a start is given), then B-spline: displacements on the fixed grid, then the affine map."""
    fixed, moving = (read_nonnegative(path) for path in (task.fixed, task.moving))
    sitk.WriteImage(fixed, str(task.folder / "fixed.mha"))
    seconds: dict[str, float] = {}
    matrix = task.begin
    if task.start is None:
        began = time.perf_counter()
        matrix = _affine(moving, task)
        seconds["affine"] = time.perf_counter() - began
    began = time.perf_counter()
    field = _bspline(fixed, moving, matrix, task)
    seconds["bspline"] = time.perf_counter() - began
    settings = {"levels": LEVELS, "penalty": PENALTY, "iterations": BSPLINE_ITERATIONS}
    return Outcome((field, matrix), seconds, settings)


def _affine(moving: sitk.Image, task: Task) -> Matrix:
    sitk.WriteImage(moving, str(task.folder / "moving.mha"))
    sitk.WriteTransform(as_sitk(task.initial), str(task.folder / "begin.tfm"))
    stages = [
        [
            "xform=affine",
            "impl=itk",
            "optim=rsg",
            "min_step=0.05",
            f"max_its={AFFINE_ITERATIONS}",
            f"res={coarser}",
        ]
        for coarser in AFFINE_LEVELS
    ]
    _run(task, ["moving=moving.mha", "xform_in=begin.tfm", "xform_out=affine.tfm"], stages)
    return matrix_of(sitk.ReadTransform(str(task.folder / "affine.tfm")))


def _bspline(fixed: sitk.Image, moving: sitk.Image, matrix: Matrix, task: Task) -> Path:
    aligned = resampled(moving, fixed, matrix, lowest_value(moving))
    sitk.WriteImage(aligned, str(task.folder / "aligned.mha"))
    stages = [
        [
            "xform=bspline",
            "impl=plastimatch",
            "optim=lbfgsb",
            f"max_its={BSPLINE_ITERATIONS}",
            f"grid_spac={spacing} {spacing} {spacing}",
            f"res={coarser}",
            f"curvature_penalty={PENALTY}",
            f"threading={'openmp' if task.threads > 1 else 'single'}",
        ]
        for coarser, spacing in LEVELS
    ]
    _run(task, ["moving=aligned.mha", "vf_out=field.mha"], stages)
    return task.folder / "field.mha"


def _run(task: Task, files: list[str], stages: list[list[str]]) -> None:
    metric = "metric=mse" if task.same_contrast else "metric=mattes"
    lines = ["[GLOBAL]", "fixed=fixed.mha", *files]
    if mask := written_mask(task):
        lines.append(f"fixed_roi={mask}")
    for stage in stages:
        lines += ["[STAGE]", metric, *stage]
    (task.folder / "parameters.txt").write_text("\n".join(lines) + "\n")
    command = [_program(task.settings), "register", "parameters.txt"]
    subprocess.run(command, cwd=task.folder, check=True)


def _program(settings: dict[str, str]) -> str:
    """The program that the setting `program` names, or the one that the package plastimatch brings."""
    if "program" in settings:
        return settings["program"]
    try:
        import plastimatch
    except ImportError as error:
        raise NotInstalled("plastimatch is not installed: pip install plastimatch==1.10.0") from error
    return str(Path(str(plastimatch.__file__)).parent / "bin" / "plastimatch")
