"""SyN of ANTs by the package antspyx.

Setting: `ants.registration(type_of_transform="SyN")` as the package ships it (mutual information, its affine and
its shape of the steps), but with 100 x 70 x 20 iterations of the deformation instead of 40 x 20 x 0, so that it
also works at full resolution. Grey values are clamped to -1024..3000 HU and begin at 0. Its random sampling
takes the seed. Its metric counts in the fixed volume's mask, in all stages, where the setting `mask` asks for one.
"""

from __future__ import annotations

import os
from pathlib import Path

import SimpleITK as sitk

from .contract import Matrix, NotInstalled, Outcome, Task
from .volumes import as_sitk, matrix_of, written_mask, written_nonnegative

ITERATIONS = (100, 70, 20)


def load() -> None:
    try:
        import ants  # noqa: F401
    except ImportError as error:
        raise NotInstalled("ANTs is not installed: pip install antspyx==0.6.3") from error


def register(task: Task) -> Outcome:
    """Affine (unless a start is given) and SyN: displacements on the fixed grid, then the affine map."""
    import ants

    ants.config.set_ants_deterministic(True, task.seed % 2**31 or 1)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(task.threads)
    files = {"fixed": task.fixed, "moving": task.moving}
    fixed, moving = (
        ants.image_read(str(written_nonnegative(file, task.folder, name))) for name, file in files.items()
    )
    begin = task.folder / "begin.mat"
    sitk.WriteTransform(as_sitk(task.begin), str(begin))
    mask = written_mask(task)
    found = ants.registration(
        fixed,
        moving,
        type_of_transform="SyN" if task.start is None else "SyNOnly",
        initial_transform=str(begin),
        outprefix=str(task.folder / "syn_"),
        reg_iterations=ITERATIONS,
        mask=ants.image_read(str(mask)) if mask else None,
        mask_all_stages=True,
    )
    settings = {"iterations": ITERATIONS, "metric": "mattes"}
    return Outcome(tuple(_part(Path(name)) for name in found["fwdtransforms"]), settings=settings)


def _part(file: Path) -> Matrix | Path:
    """One of the forward transforms, which ANTs lists warp first: in the order in which points pass them."""
    return file if file.name.endswith(".nii.gz") else matrix_of(sitk.ReadTransform(str(file)))
