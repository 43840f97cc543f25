"""What a registration leaves in its job folder, in files that a host reads quickly: uncompressed NRRD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..field import DisplacementField, displacement_on
from ..files import staged_outputs
from ..grid import Grid
from ..image import Image
from ..image_io import write_image
from ..pipeline import RegistrationResult
from ..refinement.patch import merged
from ..report import write_report
from ..transform_io import write_transform
from ..transforms import AffineTransform, CompositeTransform, Transform
from .cubic_field import cubic_field
from .dispatch import Task

OPTIONAL_OUTPUTS = ("displacement", "warped", "jacobian")
"""On the fixed volume's own grid: the whole map in mm, the moving volume under it, and its determinant."""

LINEAR_SPACING_MM = 16.0
"""Of a field that holds nothing but a linear map, which any grid interpolates exactly."""

UNKNOWN_DETAIL_MM = 2.0
"""Taken for the resolution of a start that is neither linear nor a field."""

_BYTES_BESIDE_VOXELS = 1_000_000


@dataclass(frozen=True)
class _File:
    name: str
    voxel_bytes: int
    voxels: int
    write: Callable[[Path], None]


def check_outputs(wanted: list[Any]) -> None:
    """Refuse names of outputs that there are not.

    Raises:
        UsageError: if there is one.
    """
    unknown = [name for name in wanted if name not in OPTIONAL_OUTPUTS]
    if unknown:
        raise UsageError(f"there is no output {unknown[0]!r}; there are {', '.join(OPTIONAL_OUTPUTS)}")


def write_outputs(
    result: RegistrationResult, folder: Path, wanted: list[str], inverse: bool, task: Task, share: float
) -> dict[str, Any]:
    """Write everything, all of it or nothing.

    Args:
        result: what was found.
        folder: where to write; need not exist.
        wanted: names of `OPTIONAL_OUTPUTS`.
        inverse: also the map from moving to fixed world.
        task: told the progress, and when it is too late to cancel.
        share: of all work that lies before the writing.

    Returns:
        The paths by the name of the output (None where it was not wanted), `affine` (4x4, fixed to moving world
        in LPS mm; None where the map does not end with a linear one), `inverse_residual_mm`, and `field_gap_mm`,
        how far the file `field`, which is to be interpolated cubically, strays from the map; it is sampled
        `field_refinement` times finer than the map.

    Raises:
        InputError: if the folder cannot be written.
    """
    transform = merged(result.transform, result.fixed.grid)
    field = whole_field(transform, result.fixed.grid)
    host_field, gap = cubic_field(field, result.fixed.grid)
    files = [
        _File(
            "transform.h5", 24, field.grid.number_of_voxels, lambda path: write_transform(result.transform, path)
        ),
        _field_file("field.nrrd", host_field),
    ]
    residual = None
    if inverse:
        task.progress("invert", share)
        inverse_field, residual = inverse_of(transform, field, result.moving.grid)
        files.append(_field_file("inverse.nrrd", inverse_field))
    if "displacement" in wanted:
        files.append(_field_file("displacement.nrrd", result.displacement))
    if "warped" in wanted:
        files.append(_image_file("warped.nrrd", result.warped))
    if "jacobian" in wanted:
        determinant = result.displacement.jacobian_determinant()[0, 0]
        files.append(_image_file("jacobian.nrrd", Image(determinant, result.fixed.grid)))
    needed = sum(file.voxel_bytes * file.voxels for file in files) + _BYTES_BESIDE_VOXELS
    with staged_outputs(folder, needed) as staging:
        for number, file in enumerate(files):
            task.progress("write", share + (1 - share) * number / len(files))
            file.write(staging / file.name)
        write_report(result.report, staging / "report.json")
        task.finalize()
    names = {Path(file.name).stem: str(folder / file.name) for file in files}
    return {
        "folder": str(folder),
        **{name: names.get(name) for name in ("transform", "field", "inverse", *OPTIONAL_OUTPUTS)},
        "affine": _affine_of(result.transform),
        "inverse_residual_mm": residual,
        "field_gap_mm": gap,
        "field_refinement": round(field.grid.spacing[0] / host_field.grid.spacing[0]),
    }


def whole_field(transform: Transform, fixed: Grid) -> DisplacementField:
    """The whole map in mm as a field on the grid that its deformation was solved on.

    A linear map after a linearly interpolated field is interpolated exactly, so nothing is lost there. The grid
    reaches a voxel beyond the working volume, where the deformation ends; a finer start makes it finer.
    """
    deformation, *rest = _parts(transform)
    if not isinstance(deformation, DisplacementField):
        rest = [deformation, *rest]
        grid = fixed.resampled(LINEAR_SPACING_MM).padded(1)
    else:
        grid = deformation.grid
    details = [_detail(part) for part in rest if not isinstance(part, AffineTransform)]
    if details and min(details) < min(grid.spacing):
        grid = grid.resampled(min(details))
    return displacement_on(transform, grid)


def inverse_of(transform: Transform, field: DisplacementField, moving: Grid) -> tuple[DisplacementField, float]:
    """The map from moving to fixed world over the moving volume's box.

    It is given at twice the resolution of `field` where that deforms: unlike the map itself, its inverse is not
    linear between the voxels.

    Args:
        transform: from fixed to moving world.
        field: the same as a field.
        moving: the moving volume's grid.

    Returns:
        The inverse in mm, and the largest residual of the inversion in mm.
    """
    parts = _parts(transform)
    deformations = [part for part in parts if not isinstance(part, AffineTransform)]
    linear = [part for part in parts if isinstance(part, AffineTransform)]
    grid = moving.resampled(min(field.grid.spacing) / (2 if deformations else 1)).padded(1)
    if deformations and not (deformations == parts[:1] and isinstance(parts[0], DisplacementField)):
        return field.inverse(grid)
    # Far from the identity the iteration would not find its way, so the linear part is inverted for itself.
    back = reduce(lambda first, second: second.compose(first), linear, AffineTransform()).inverse()
    if deformations:
        return parts[0].inverse(grid, first=back)
    return displacement_on(back, grid), 0.0


def _parts(transform: Transform) -> list[Any]:
    """The maps that a transform applies, from the first to the last."""
    return list(transform.transforms) if isinstance(transform, CompositeTransform) else [transform]


def _detail(part: Transform) -> float:
    return min(part.grid.spacing) if isinstance(part, DisplacementField) else UNKNOWN_DETAIL_MM


def _affine_of(transform: Transform) -> list[list[float]] | None:
    last = _parts(transform)[-1]
    return np.asarray(last.matrix).tolist() if isinstance(last, AffineTransform) else None


def _field_file(name: str, field: DisplacementField) -> _File:
    return _File(name, 12, field.grid.number_of_voxels, lambda path: write_transform(field, path, compress=False))


def _image_file(name: str, image: Image) -> _File:
    size = np.dtype(image.pixel_type).itemsize
    return _File(name, size, image.grid.number_of_voxels, lambda path: write_image(image, path, compress=False))
