"""What several adapters do with volumes and world matrices (LPS mm, fixed to moving)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .contract import Matrix, Task

AIR_HU = -1024.0
LARGEST_INTENSITY = 3000.0
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From LPS to RAS and back."""


def read_nonnegative(path: Path) -> sitk.Image:
    """A volume as float, from 0 (so that centers of mass make sense) and without the brightest metal.

    0 is air for every CT, so that two of them stay comparable, and the smallest value of another volume.
    """
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    lowest = lowest_value(image)
    darkest = AIR_HU if lowest < AIR_HU / 2 else lowest
    return sitk.Clamp(image - darkest, sitk.sitkFloat32, 0, LARGEST_INTENSITY)


def written_nonnegative(path: Path, folder: Path, name: str) -> Path:
    """The same as a file, for peers that read files."""
    file = folder / f"{name}.nii.gz"
    sitk.WriteImage(read_nonnegative(path), str(file))
    return file


def measured_mask(task: Task) -> sitk.Image | None:
    """Where the fixed volume holds a measured body, if the setting `mask` is "measured"; None without it.

    A cone-beam CT sees a cylinder, whose end is no end of the body. Everything brighter than the volume's padding,
    holes of each slice filled, the largest piece.

    Raises:
        ValueError: for another value of the setting.
    """
    wanted = task.settings.get("mask")
    if wanted is None:
        return None
    if wanted != "measured":
        raise ValueError(f'the setting mask can only be "measured", not {wanted!r}')
    volume = read_nonnegative(task.fixed)
    brighter = volume > lowest_value(volume)
    slices = [sitk.BinaryFillhole(brighter[:, :, z]) for z in range(volume.GetSize()[2])]
    opened = sitk.BinaryMorphologicalOpening(sitk.JoinSeries(slices), [2, 2, 1])
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    mask = sitk.Cast(pieces == 1, sitk.sitkUInt8)
    mask.CopyInformation(volume)
    return mask


def written_mask(task: Task) -> Path | None:
    """The same as a file, for peers that read files."""
    mask = measured_mask(task)
    if mask is None:
        return None
    file = task.folder / "mask.nii.gz"
    sitk.WriteImage(mask, str(file))
    return file


def center_of(image: sitk.Image) -> list[float]:
    """World position of the middle of a volume."""
    return list(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def as_sitk(matrix: Matrix, center: Any = (0.0, 0.0, 0.0)) -> sitk.AffineTransform:
    """A world matrix as a transform that turns about `center`."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetCenter(list(center))
    center = np.asarray(center, dtype=np.float64)
    transform.SetTranslation((matrix[:3, :3] @ center + matrix[:3, 3] - center).tolist())
    return transform


def matrix_of(transform: sitk.Transform) -> Matrix:
    """The 4x4 matrix of a chain of affine transforms, read off from what it does to four points."""
    origin = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        unit = np.eye(3)[axis] * 100.0
        matrix[:3, axis] = (np.asarray(transform.TransformPoint(unit.tolist())) - origin) / 100.0
    return matrix


def resampled(moving: sitk.Image, like: sitk.Image, matrix: Matrix, outside: float) -> sitk.Image:
    """The moving volume on another volume's grid, brought there by a world matrix."""
    return sitk.Resample(moving, like, as_sitk(matrix), sitk.sitkLinear, outside, sitk.sitkFloat32)


def lowest_value(image: sitk.Image) -> float:
    """Air of a CT, or the smallest value of another volume."""
    return float(np.min(sitk.GetArrayViewFromImage(image)))


def read_matrix_file(path: Path) -> Matrix:
    """A 4x4 matrix from a text file of numbers, as it stands there."""
    return np.loadtxt(path, dtype=np.float64).reshape(4, 4)


def written_field(displacement: Any, like: sitk.Image, path: Path) -> Path:
    """Displacements in mm, (z, y, x, 3) with LPS components, as a vector image on a volume's grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(displacement, dtype=np.float32), isVector=True)
    image.SetSpacing(like.GetSpacing())
    image.SetOrigin(like.GetOrigin())
    image.SetDirection(like.GetDirection())
    sitk.WriteImage(image, str(path))
    return path
