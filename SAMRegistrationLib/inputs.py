"""Turning what a caller hands in (paths, SimpleITK images, nouns of this library) into nouns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .errors import InputError, RegistrationWarning, UsageError
from .image import Image
from .image_io import MINIMUM_SLICES, read_image, read_labels
from .sampling import Interpolation
from .transform_io import from_sitk, read_transform
from .transforms import AffineTransform, Transform

VolumeLike = str | Path | sitk.Image | Image
TransformLike = str | Path | sitk.Transform | Transform | np.ndarray


def as_volume(source: VolumeLike, name: str, modality: str | None = None) -> Image:
    """A volume from a path, a SimpleITK image or an `Image`.

    Raises:
        InputError: if it cannot be read, is not 3D, or holds nothing to register.
        UsageError: if it is of another type.
    """
    if isinstance(source, str | Path):
        return read_image(source, modality)
    source = _in_memory(source, f"the {name} volume", modality)
    if min(source.grid.size) < MINIMUM_SLICES:
        raise InputError(
            f"the {name} volume is too thin for a 3D volume: {min(source.grid.size)} voxels on one axis"
        )
    if not bool(torch.isfinite(source.data).all()):
        raise InputError(f"the {name} volume contains values that are not finite")
    if float(source.data.min()) == float(source.data.max()):
        raise InputError(f"the {name} volume is constant, so there is nothing to register")
    return source


def as_mask(source: VolumeLike | None, image: Image) -> torch.Tensor | None:
    """A mask on the grid of its image, (z, y, x) bool; None stays None.

    Raises:
        InputError: if the mask cannot be read, lies elsewhere or is empty.
    """
    if source is None:
        return None
    if isinstance(source, str | Path):
        mask = read_labels(source, image)
    else:
        given = _in_memory(source, "a mask")
        mask = given.resampled(image.grid, Interpolation.NEAREST, default=0)
        if not given.grid.isclose(image.grid):
            if not bool((mask.data > 0).any()):
                raise InputError("a mask does not overlap its volume: no part of it lies inside")
            warnings.warn(
                "a mask lies on another grid than its volume; it was resampled to the nearest voxel",
                RegistrationWarning,
                stacklevel=2,
            )
    inside = mask.data > 0
    if not bool(inside.any()):
        raise InputError("a mask is empty, so nothing would be registered")
    return inside


def as_transform(source: TransformLike | None) -> Transform | None:
    """A transform from a path, a SimpleITK transform, a 4x4 matrix (LPS mm) or one of ours; None stays None.

    Raises:
        InputError: if it cannot be read as a 3D transform.
        UsageError: if it is of another type.
    """
    if source is None:
        return None
    if isinstance(source, str | Path):
        return read_transform(source)
    if isinstance(source, sitk.Transform) and source.GetDimension() != 3:
        raise InputError("the initial transform must be a 3D transform")
    try:
        if isinstance(source, sitk.Transform):
            return from_sitk(source)
        if isinstance(source, np.ndarray):
            return AffineTransform(source)
    except ValueError as error:
        raise InputError(f"the initial transform cannot be used: {error}") from error
    if not hasattr(source, "map_world"):
        raise UsageError(f"the initial transform must be a path, a transform or a 4x4 matrix, not {type(source)}")
    return source


def _in_memory(source: sitk.Image | Image, name: str, modality: str | None = None) -> Image:
    if isinstance(source, Image):
        return source
    if not isinstance(source, sitk.Image):
        raise UsageError(f"{name} must be a path, a SimpleITK image or an Image, not {type(source)}")
    is_complex = "complex" in source.GetPixelIDTypeAsString()
    if source.GetDimension() != 3 or source.GetNumberOfComponentsPerPixel() != 1 or is_complex:
        raise InputError(f"{name} must be a 3D image with one value per voxel")
    try:
        return Image.from_sitk(source, modality)
    except ValueError as error:
        raise InputError(f"{name} cannot be used: {error}") from error


def origin_of(source: Any) -> Path | None:
    """The file that an input came from, if it came from one."""
    return Path(source) if isinstance(source, str | Path) else None
