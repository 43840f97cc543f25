"""Reading and writing transforms in the formats that ITK and Slicer share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import InputError
from .field import DisplacementField
from .transforms import AffineTransform, CompositeTransform, ItkTransform, Transform

FIELD_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_transform(path: str | Path) -> Transform:
    """A transform from an ITK transform file or a displacement field image (LPS mm).

    Raises:
        InputError: if the file is missing or holds no 3D transform.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"transform file not found: {path}")
    if path.name.lower().endswith(FIELD_SUFFIXES):
        return _read_field(path)
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} is not a transform file that ITK can read (.h5, .tfm, .txt, .mat)") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} holds a {transform.GetDimension()}D transform; a 3D one is needed")
    return from_sitk(transform)


def _read_field(path: Path) -> DisplacementField:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as a displacement field; it may be truncated") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise InputError(f"{path} is an image, not a displacement field with three components per voxel")
    return DisplacementField.from_sitk(image)


def write_transform(transform: Transform, path: str | Path) -> None:
    """Write a transform: .h5 or .tfm as ITK transform, image formats as a displacement field.

    Raises:
        InputError: if the file type cannot hold the transform or the place cannot be written.
    """
    path = Path(path)
    try:
        if path.name.lower().endswith(FIELD_SUFFIXES):
            if not isinstance(transform, DisplacementField):
                raise InputError(f"{path}: only a displacement field can be written as an image")
            sitk.WriteImage(transform.to_image(), str(path), useCompression=True)
        else:
            sitk.WriteTransform(transform.to_sitk(), str(path))
    except RuntimeError as error:
        raise InputError(f"cannot write the transform {path}: unknown file type or no permission") from error


def from_sitk(transform: sitk.Transform) -> Transform:
    """The library's own form of a SimpleITK transform."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        count = transform.GetNumberOfTransforms()
        # ITK applies the last one first.
        return CompositeTransform(from_sitk(transform.GetNthTransform(n)) for n in reversed(range(count)))
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return DisplacementField.from_sitk(transform.GetDisplacementField())
    if transform.IsLinear():
        return _affine_from_sitk(transform)
    return ItkTransform(transform)


def _affine_from_sitk(transform: sitk.Transform) -> AffineTransform:
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(tuple(np.eye(3)[axis]))) - origin
    return AffineTransform(matrix)
