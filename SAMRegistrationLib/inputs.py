"""Turning what a caller hands in (paths, SimpleITK images, nouns of this library) into nouns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .errors import InputError, UsageError
from .image import Image
from .image_io import read_image, read_labels
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
    if isinstance(source, sitk.Image):
        if source.GetDimension() != 3 or source.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"the {name} volume must be a 3D image with one value per voxel")
        source = Image.from_sitk(source, modality)
    if not isinstance(source, Image):
        raise UsageError(f"the {name} volume must be a path, a SimpleITK image or an Image, not {type(source)}")
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
        given = Image.from_sitk(source) if isinstance(source, sitk.Image) else source
        if not given.grid.isclose(image.grid) and given.grid.overlap(image.grid) == 0:
            raise InputError("a mask does not overlap its volume")
        mask = given.resampled(image.grid, Interpolation.NEAREST, default=0)
    inside = mask.data > 0
    if not bool(inside.any()):
        raise InputError("a mask is empty, so nothing would be registered")
    return inside


def as_transform(source: TransformLike | None) -> Transform | None:
    """A transform from a path, a SimpleITK transform, a 4x4 matrix (LPS mm) or one of ours; None stays None.

    Raises:
        InputError: if it cannot be read as a 3D transform.
    """
    if source is None:
        return None
    if isinstance(source, str | Path):
        return read_transform(source)
    if isinstance(source, sitk.Transform):
        return from_sitk(source)
    if isinstance(source, np.ndarray):
        try:
            return AffineTransform(source)
        except ValueError as error:
            raise InputError(f"the initial matrix cannot be used: {error}") from error
    return source


def origin_of(source: Any) -> Path | None:
    """The file that an input came from, if it came from one."""
    return Path(source) if isinstance(source, str | Path) else None
