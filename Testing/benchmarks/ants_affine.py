"""The affine start of ANTs' SyN, by the package antspyx: what `type_of_transform="SyN"` begins with."""

from __future__ import annotations

import os

import SimpleITK as sitk

from SAMRegistrationLib.benchmark.peers.contract import NotInstalled, Outcome, Task
from SAMRegistrationLib.benchmark.peers.volumes import as_sitk, matrix_of, written_nonnegative


def load() -> None:
    """Refuse where the package is missing."""
    try:
        import ants  # noqa: F401
    except ImportError as error:
        raise NotInstalled("ANTs is not installed: pip install antspyx==0.6.3") from error


def register(task: Task) -> Outcome:
    """Rigid and affine by mutual information, as the package ships it."""
    import ants

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(task.threads)
    fixed, moving = (
        ants.image_read(str(written_nonnegative(file, task.folder, name)))
        for name, file in (("fixed", task.fixed), ("moving", task.moving))
    )
    begin = task.folder / "begin.mat"
    sitk.WriteTransform(as_sitk(task.begin), str(begin))
    found = ants.registration(
        fixed,
        moving,
        type_of_transform="Affine",
        initial_transform=str(begin),
        outprefix=str(task.folder / "ants_"),
    )
    return Outcome(tuple(matrix_of(sitk.ReadTransform(name)) for name in found["fwdtransforms"]))
