"""Rigid motion of volumes by their headers, in LPS millimeters, and volumes that are made once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def apply_matrix(matrix: FloatArray, points: FloatArray) -> FloatArray:
    """A 4x4 matrix on points (..., 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def rotation(axis: FloatArray, angle: float) -> FloatArray:
    """The 3x3 rotation by `angle` (radians) about a unit vector."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def rigid_about(turn: FloatArray, center: FloatArray, shift: FloatArray) -> FloatArray:
    """The 4x4 matrix that turns by a 3x3 rotation about `center` and then shifts."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = center - turn @ center + shift
    return matrix


def moved_in_world(image: sitk.Image, matrix: FloatArray) -> sitk.Image:
    """The same voxels at the place where the rigid 4x4 matrix puts them; nothing is resampled."""
    moved = sitk.Image(image)
    direction = matrix[:3, :3] @ np.reshape(image.GetDirection(), (3, 3))
    moved.SetDirection(direction.ravel().tolist())
    moved.SetOrigin(apply_matrix(matrix, np.asarray(image.GetOrigin())).tolist())
    return moved


def center_of(image: sitk.Image) -> FloatArray:
    """World position of the middle of a volume."""
    middle = [(n - 1) / 2 for n in image.GetSize()]
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(middle))


def resampled(image: sitk.Image, size: tuple[int, int, int], spacing: float) -> sitk.Image:
    """The image on `size` cubic voxels (x, y, z) around its middle, linearly; beyond it its lowest value."""
    axes = np.reshape(image.GetDirection(), (3, 3))
    origin = center_of(image) - axes @ ((np.asarray(size) - 1) / 2 * spacing)
    lowest = float(sitk.GetArrayViewFromImage(image).min())
    transform, interpolator = sitk.Transform(), sitk.sitkLinear
    placement = origin.tolist(), [spacing] * 3, image.GetDirection()
    return sitk.Resample(image, list(size), transform, interpolator, *placement, lowest)


def stored(folder: Path, name: str, image: sitk.Image) -> Path:
    """Write an image once, complete or not at all, however many processes want it at the same time."""
    path = folder / f"{name}.nii.gz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part{os.getpid()}_{path.name}")
        sitk.WriteImage(image, str(part))
        part.replace(path)
    return path
