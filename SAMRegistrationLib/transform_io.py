"""Reading and writing transforms in the formats that ITK and Slicer share."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from .errors import InputError
from .field import DisplacementField
from .files import require_writable_folder, staged_file
from .itk_files import quiet_itk, read_sitk, write_sitk
from .transforms import AffineTransform, CompositeTransform, ItkTransform, Transform

FIELD_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
TRANSFORM_SUFFIXES = (".h5", ".tfm", ".txt", ".mat")
_NRRD_SUFFIXES = (".nrrd", ".nhdr")
_TEXT_SUFFIXES = (".tfm", ".txt")
_BYTES_PER_NUMBER = {False: 8, True: 25}  # double precision; as text
_BYTES_BESIDE_FIELDS = 100_000
# How Slicer marks NRRD fields since 2025; resampling is the direction from fixed to moving.
_SLICER_DIRECTION = "displacement field type"
_SLICER_NRRD_FIELDS = {_SLICER_DIRECTION: "resampling", "intent_code": "1006"}


def read_transform(path: str | Path) -> Transform:
    """A transform from an ITK transform file or a displacement field image (LPS mm).

    Raises:
        InputError: if the file is missing, damaged, or holds no 3D transform from fixed to moving world.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"transform file not found: {path}")
    if path.name.lower().endswith(FIELD_SUFFIXES):
        return _read_field(path)
    try:
        with quiet_itk():
            transform = sitk.ReadTransform(os.fspath(path))
    except RuntimeError as error:
        raise InputError(
            f"{path} is not a transform that can be read: use {', '.join(TRANSFORM_SUFFIXES)} or a displacement "
            f"field ({', '.join(FIELD_SUFFIXES)})"
        ) from error
    if path.name.lower().endswith(_TEXT_SUFFIXES) and not _is_complete_text(path):
        raise InputError(f"{path} is truncated or damaged")
    if transform.GetDimension() != 3:
        raise InputError(f"{path} holds a {transform.GetDimension()}D transform; a 3D one is needed")
    try:
        return from_sitk(transform)
    except ValueError as error:
        raise InputError(f"{path} holds a transform that cannot be used: {error}") from error


def write_transform(transform: Transform, path: str | Path, compress: bool = True) -> None:
    """Write a transform, complete or not at all: as ITK transform (.h5, .tfm) or as a displacement field image.

    Args:
        transform: the transform.
        path: its name decides the format.
        compress: of a field as NRRD or MetaImage; NIfTI is compressed or not as its name says.

    Raises:
        InputError: if the file type cannot hold the transform, the place cannot be written or the disk is full.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(FIELD_SUFFIXES):
        if not isinstance(transform, DisplacementField):
            raise InputError(f"cannot write {path}: only a displacement field can be written as an image")
        write_sitk(_marked_for_slicer(transform.to_image(), name), path, compress)
        return
    if not name.endswith(TRANSFORM_SUFFIXES):
        raise InputError(
            f"cannot write {path}: the name must end in {', '.join(TRANSFORM_SUFFIXES + FIELD_SUFFIXES)}"
        )
    require_writable_folder(path.parent, _bytes_at_most(transform, name))
    with staged_file(path) as staged:
        try:
            with quiet_itk():
                sitk.WriteTransform(transform.to_sitk(), os.fspath(staged))
        except RuntimeError as error:
            raise InputError(f"cannot write {path}: the disk is full, or the file type cannot hold it") from error
        if name.endswith(_TEXT_SUFFIXES) and not _is_complete_text(staged):
            raise InputError(f"cannot write {path}: the disk is full")


def from_sitk(transform: sitk.Transform) -> Transform:
    """The library's own form of a 3D SimpleITK transform.

    Raises:
        ValueError: if it is not invertible or holds values that are not finite.
    """
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        count = transform.GetNumberOfTransforms()
        # ITK applies the last one first.
        return CompositeTransform(from_sitk(transform.GetNthTransform(n)) for n in reversed(range(count)))
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return _finite(DisplacementField.from_sitk(transform.GetDisplacementField()))
    if transform.IsLinear():
        return _affine_from_sitk(transform)
    return ItkTransform(transform)


def _read_field(path: Path) -> DisplacementField:
    image = read_sitk(path)
    if image.GetDimension() != 3:
        raise InputError(f"{path} holds a {image.GetDimension()}D image; a 3D displacement field is needed")
    if image.GetNumberOfComponentsPerPixel() != 3 or "float" not in image.GetPixelIDTypeAsString():
        raise InputError(f"{path} is an image, not a displacement field with three decimal numbers per voxel")
    if image.HasMetaDataKey(_SLICER_DIRECTION) and image.GetMetaData(_SLICER_DIRECTION) == "modeling":
        raise InputError(
            f"{path} holds a field from moving to fixed (modeling); invert it and save it as resampling"
        )
    try:
        return _finite(DisplacementField.from_sitk(image))
    except ValueError as error:
        raise InputError(f"{path} holds a transform that cannot be used: {error}") from error


def _finite(field: DisplacementField) -> DisplacementField:
    if not torch.isfinite(field.data).all():
        raise ValueError("the displacement field has values that are not finite")
    return field


def _is_complete_text(path: Path) -> bool:
    """Whether no transform lacks its parameters, for which ITK silently takes the identity's."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kinds = re.findall(r"^Transform: *(\w+)", text, flags=re.MULTILINE)
    expected = sum(not kind.startswith("CompositeTransform") for kind in kinds)
    found = [len(re.findall(rf"^{key}:", text, flags=re.MULTILINE)) for key in ("Parameters", "FixedParameters")]
    return min(found) >= expected


def _bytes_at_most(transform: Transform, name: str) -> int:
    """Room for the file. HDF5 is asked first, because it takes the process down at its end after a full disk."""
    parts = transform.transforms if isinstance(transform, CompositeTransform) else (transform,)
    numbers = sum(part.data.numel() for part in parts if isinstance(part, DisplacementField))
    return _BYTES_PER_NUMBER[name.endswith(_TEXT_SUFFIXES)] * numbers + _BYTES_BESIDE_FIELDS


def _marked_for_slicer(image: sitk.Image, name: str) -> sitk.Image:
    if name.endswith(_NRRD_SUFFIXES):
        for key, value in _SLICER_NRRD_FIELDS.items():
            image.SetMetaData(key, value)
    return image


def _affine_from_sitk(transform: sitk.Transform) -> AffineTransform:
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(tuple(np.eye(3)[axis]))) - origin
    return AffineTransform(matrix)
