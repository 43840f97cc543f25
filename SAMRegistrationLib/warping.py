"""Volumes and label maps brought onto another grid with a transform, from file to file."""

from __future__ import annotations

from pathlib import Path

from .field import displacement_on
from .image_io import read_image, read_labels, write_image
from .sampling import Interpolation
from .transform_io import read_transform


def warp_file(
    transform: str | Path, source: str | Path, reference: str | Path, output: str | Path, labels: bool = False
) -> None:
    """Resample a volume of the moving space on the grid of a volume of the fixed space.

    Args:
        transform: file of a transform from fixed to moving world.
        source: volume or label map in moving space.
        reference: volume whose grid is wanted.
        output: file to write, complete or not at all.
        labels: the source is a label map: nearest neighbor.

    Raises:
        InputError: if a file cannot be used or written.
    """
    mapping = read_transform(transform)
    grid = read_image(reference).grid
    moving = read_labels(source) if labels else read_image(source)
    field = displacement_on(mapping, grid)
    if labels:
        warped = field.warp(moving, Interpolation.NEAREST, default=0)
    else:
        warped = field.warp(moving, Interpolation.LINEAR)
    write_image(warped, output)
