"""Volumes and label maps from files and DICOM folders, checked, and back into files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import isfinite
from pathlib import Path

import SimpleITK as sitk
import torch

from .dicom import MODALITY_TAG, known_modality, read_series
from .errors import InputError, RegistrationWarning
from .grid import Grid
from .image import Image
from .itk_files import read_header, read_voxels, write_sitk
from .sampling import Interpolation

MINIMUM_SLICES = 4
"""Fewer voxels than this along an axis are a 2D image in effect."""

_HU_RANGE = (-1100.0, 3100.0)
_SOFT_TISSUE = (-200.0, 300.0)


def read_image(path: str | Path, modality: str | None = None) -> Image:
    """A volume from a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.

    Args:
        path: the file or folder.
        modality: "CT" or "MR"; by default what DICOM says, or CT where the values look like Hounsfield units.

    Raises:
        InputError: if the file is missing or damaged, or does not hold one 3D volume of finite, varying numbers.
    """
    path = Path(path)
    image = _read_volume(path)
    _require_thickness(image, path)
    _require_content(image, path)
    return replace(image, modality=modality or image.modality or _guessed_modality(image))


def read_labels(path: str | Path, like: Image | Grid | None = None) -> Image:
    """A label map or mask, on the grid of the image that it belongs to.

    Args:
        path: a file as for `read_image`, of whole numbers.
        like: the image or its grid. A label map on another grid is resampled to it (nearest voxel) with a
            `RegistrationWarning`.

    Raises:
        InputError: if the file is unreadable, holds no labels, or no label of it lies inside the image.
    """
    path = Path(path)
    labels = _read_volume(path)
    _require_finite(labels, path)
    if not torch.equal(labels.data, labels.data.round()):
        raise InputError(f"{path} is not a label map: its values are not whole numbers")
    if not labels.data.any():
        raise InputError(f"{path} holds no labels: every voxel is 0")
    if like is None:
        return labels
    return _on_grid(labels, like.grid if isinstance(like, Image) else like, path)


def write_image(image: Image, path: str | Path, pixel_type: str | None = None, compress: bool = True) -> None:
    """Write a volume as NIfTI, NRRD or MetaImage, complete or not at all.

    Args:
        image: the volume.
        path: its name decides the format.
        pixel_type: numpy name, by default the image's own; values are rounded and clipped to whole-number types.
        compress: NIfTI is compressed or not as its name says, whatever this is.

    Raises:
        InputError: if the file type is unknown or the place cannot be written.
    """
    write_sitk(image.to_sitk(pixel_type), path, compress)


def _read_volume(path: Path) -> Image:
    """A 3D scalar volume with its modality where DICOM says it."""
    if path.is_dir():
        volume, modality = read_series(path)
    else:
        reader = read_header(path)
        _require_scalar_volume(reader, path)
        volume = read_voxels(reader)
        modality = (
            known_modality(reader.GetMetaData(MODALITY_TAG)) if reader.HasMetaDataKey(MODALITY_TAG) else None
        )
    try:
        return Image.from_sitk(volume, modality)
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}") from error


def _require_scalar_volume(reader: sitk.ImageFileReader, path: Path) -> None:
    """Refuse other than 3D scalar images; of a 4D image with one time point, the reader is told to take it."""
    size = reader.GetSize()
    components = reader.GetNumberOfComponents()
    if components != 1 or "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"{path} is a color, vector or complex image; one number per voxel is needed")
    if len(size) > 3 and max(size[3:]) > 1:
        raise InputError(
            f"{path} is a {len(size)}D image ({_times(size)}); one 3D volume is needed, so extract one"
        )
    if len(size) < 3:
        raise InputError(f"{path} is a 2D image ({_times(size)}); a 3D volume is needed")
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])


def _require_thickness(image: Image, path: Path) -> None:
    if min(image.grid.size) < MINIMUM_SLICES:
        hint = "; for DICOM give the folder of the series" if path.is_file() else ""
        raise InputError(f"{path} is too thin for a 3D volume ({_times(image.grid.size)} voxels){hint}")


def _require_content(image: Image, path: Path) -> None:
    lowest, highest = _require_finite(image, path)
    if lowest == highest:
        raise InputError(f"{path} is constant: every voxel is {lowest:g}")


def _require_finite(image: Image, path: Path) -> tuple[float, float]:
    """The smallest and the largest value; a number that is not finite shows in one of them."""
    lowest, highest = (float(value) for value in torch.aminmax(image.data))
    if not (isfinite(lowest) and isfinite(highest)):
        bad = int((~torch.isfinite(image.data)).sum())
        raise InputError(f"{path} has {bad} voxels that are NaN or infinite; replace them by a number first")
    return lowest, highest


def _guessed_modality(image: Image) -> str | None:
    """CT, if nearly all values are possible Hounsfield units (or padding) and air and soft tissue both occur."""
    lowest = image.data.min()
    if lowest > -500:
        return None
    data = image.data[::2, ::2, ::2]
    possible = ((data >= _HU_RANGE[0]) & (data <= _HU_RANGE[1])) | (data == lowest)
    soft_tissue = (data >= _SOFT_TISSUE[0]) & (data <= _SOFT_TISSUE[1])
    looks_like_ct = possible.float().mean() > 0.98 and soft_tissue.float().mean() > 0.02
    return "CT" if looks_like_ct else None


def _on_grid(labels: Image, grid: Grid, path: Path) -> Image:
    if labels.grid.isclose(grid):
        return replace(labels, grid=grid)
    resampled = labels.resampled(grid, Interpolation.NEAREST, default=0.0)
    if not resampled.data.any():
        raise InputError(f"{path} does not overlap its image: none of its labels lies inside it")
    warnings.warn(
        f"{path} lies on another grid than its image; it was resampled to the nearest voxel",
        RegistrationWarning,
        stacklevel=3,
    )
    return resampled


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in size)
