"""What a transform reached on a pair with ground truth: labels, landmarks, similarity and smoothness.

Everything is given before (the volumes as they lie in world space) and after. Two rules keep the means honest:
a label counts only if both label maps hold it (inside the mask, if one is given), others are listed as absent;
a label that was moved out of the fixed volume counts with Dice 0 and is listed as lost, since it has no distance
and is missing from the means of distances.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError, RegistrationWarning, UsageError
from ..field import DisplacementField, displacement_on
from ..grid import Grid
from ..image import Image
from ..image_io import read_image, read_labels
from ..metrics import field_quality
from ..points import PointSet, read_point_pairs
from ..report import describe_input, json_ready, similarity_under
from ..sampling import Interpolation
from ..transform_io import read_transform
from ..transforms import Transform
from .labels import evaluate_labels
from .landmarks import evaluate_landmarks

__all__ = ["evaluate", "evaluate_files"]

T = TypeVar("T")

SCHEMA = "samreg-evaluation"
SCHEMA_VERSION = 1


def evaluate(
    transform: Transform,
    fixed: Image | Grid,
    moving: Image | None = None,
    *,
    fixed_labels: Image | None = None,
    moving_labels: Image | None = None,
    fixed_points: PointSet | None = None,
    moving_points: PointSet | None = None,
    mask: Image | None = None,
    labels: Collection[int] | None = None,
    label_names: Mapping[int, str] | None = None,
    label_groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Measure a transform from fixed world to moving world.

    Args:
        transform: what is measured, as its total displacement on the fixed grid.
        fixed: the fixed volume or its grid; all overlap measures are taken on this grid.
        moving: the moving volume, to measure similarity if `fixed` is a volume too.
        fixed_labels, moving_labels: label maps; each may lie on any grid that overlaps its volume.
        fixed_points, moving_points: corresponding landmarks in world space, by order.
        mask: voxels of the fixed volume to which every measure is restricted.
        labels: the labels to look at; by default all.
        label_names: names for the tables.
        label_groups: named groups of labels to average.

    Returns:
        A dictionary that can be written as JSON, with the parts `field`, and as far as there is ground truth
        `similarity`, `labels` and `landmarks`; numbers that do not exist are None.

    Raises:
        UsageError: if ground truth is given for one of both volumes only.
        InputError: if labels or mask do not overlap the fixed volume, or numbers of landmarks differ.
    """
    grid = fixed.grid if isinstance(fixed, Image) else fixed
    fields = {"before": DisplacementField.zero(grid), "after": displacement_on(transform, grid)}
    region = None if mask is None else _on_grid(mask, grid, "the mask").data > 0
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "field": asdict(field_quality(fields["after"].to_voxels(), region)),
    }
    if isinstance(fixed, Image) and moving is not None:
        result["similarity"] = {
            state: similarity_under(field, fixed, moving, region) for state, field in fields.items()
        }
    if maps := _pair("labels", fixed_labels, moving_labels):
        on_fixed = _on_grid(maps[0], grid, "the fixed label map")
        result["labels"] = evaluate_labels(
            fields, on_fixed, maps[1], region, labels, label_names or {}, label_groups or {}
        )
    if points := _pair("points", fixed_points, moving_points):
        result["landmarks"] = evaluate_landmarks(transform, fields["after"], *points, region)
    return json_ready(result)


def evaluate_files(
    transform: str | Path,
    fixed: str | Path,
    moving: str | Path,
    *,
    fixed_labels: str | Path | None = None,
    moving_labels: str | Path | None = None,
    fixed_points: str | Path | None = None,
    moving_points: str | Path | None = None,
    mask: str | Path | None = None,
) -> dict[str, Any]:
    """`evaluate` on files, with the checksums of all of them in the part `inputs`.

    `fixed_points` alone may be a table of pairs (see `read_point_pairs`). A label map or mask on another grid than
    its volume is resampled with a warning.

    Raises:
        InputError: if a file cannot be used.
        UsageError: if labels or points are given for one of both volumes only.
    """
    fixed_image, moving_image = read_image(fixed), read_image(moving)
    _pair("labels", fixed_labels, moving_labels)
    if moving_points and not fixed_points:
        raise UsageError("points are given for one volume only; the fixed points are missing")
    points = read_point_pairs(fixed_points, moving_points) if fixed_points else (None, None)
    result = evaluate(
        read_transform(transform),
        fixed_image,
        moving_image,
        fixed_labels=read_labels(fixed_labels, fixed_image) if fixed_labels else None,
        moving_labels=read_labels(moving_labels, moving_image) if moving_labels else None,
        fixed_points=points[0],
        moving_points=points[1],
        mask=read_labels(mask, fixed_image) if mask else None,
    )
    files = {
        "transform": transform,
        "fixed": fixed,
        "moving": moving,
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_points": fixed_points,
        "moving_points": moving_points,
        "mask": mask,
    }
    images = {"fixed": fixed_image, "moving": moving_image}
    result["inputs"] = {
        name: describe_input(images.get(name), Path(path)) for name, path in files.items() if path is not None
    }
    return result


def _pair(what: str, fixed: T | None, moving: T | None) -> tuple[T, T] | None:
    """Both or none of the ground truth of a pair."""
    if fixed is not None and moving is not None:
        return fixed, moving
    if fixed is None and moving is None:
        return None
    lacking = "moving" if moving is None else "fixed"
    raise UsageError(f"{what} are given for one volume only; the {lacking} {what} are missing")


def _on_grid(labels: Image, grid: Grid, name: str) -> Image:
    if labels.grid.isclose(grid):
        return labels
    resampled = labels.resampled(grid, Interpolation.NEAREST, default=0.0)
    if not bool(resampled.data.any()):
        raise InputError(f"{name} does not overlap the fixed volume: none of its labels lies inside it")
    warnings.warn(
        f"{name} lies on another grid than the fixed volume; it was resampled to the nearest voxel",
        RegistrationWarning,
        stacklevel=3,
    )
    return resampled
