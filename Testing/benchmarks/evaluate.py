"""How right a displacement is: every kind of ground truth a pair has, by the library's own metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from SAMRegistrationLib.field import DisplacementField
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image, read_labels
from SAMRegistrationLib.metrics import (
    center_distance_per_label,
    common_labels,
    dice_per_label,
    field_quality,
    hausdorff95_per_label,
    point_distances,
    within,
)
from SAMRegistrationLib.sampling import Interpolation

from .pairs import FloatArray, Label, Mask, Pair, Region, Truth

BoolArray = NDArray[np.bool_]
LabelArray = NDArray[np.int64]
BODY_HU = -500.0
STILL_WIDTH_MM = 35.0


@dataclass(frozen=True)
class Score:
    """One number. `label` names the organ, and is empty for measures of the whole volume."""

    metric: str
    value: float | None
    label: str = ""
    group: str = ""
    scored: bool = True

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(pair: Pair, field: DisplacementField) -> list[Score]:
    """All scores of a displacement (mm, on the grid of the fixed volume on which the pair is judged).

    Metrics: `dice` (0..1), `hd95_mm`, `center_mm` per label; `tre_*_mm` over landmarks; `error_*_mm` against a
    known transform inside its mask; `still_*_mm`, the displacement where the common scanner frame says zero;
    `folded_percent`, `ndv_percent`, `sdlogj`, `sdlogj_l2r` of the field; `inside_percent`, how much of the
    fixed grid is mapped into the moving volume.
    """
    fixed, moving = (read_image(volume) for volume in pair.judged_volumes)
    inside = _mapped_inside(field, moving)
    scores = [Score("inside_percent", 100 * float(inside.mean())), *_smoothness(field)]
    if pair.label_maps:
        region = _region(pair, fixed, moving, inside)
        label_maps = read_labels(pair.label_maps[0], fixed), read_labels(pair.label_maps[1], moving)
        scores += _label_scores(pair.labels, field, *label_maps, region)
        if pair.still_label is not None:
            scores += _distances("still", _still_displacements(field, label_maps[0], pair.still_label, region))
    if pair.landmarks:
        fixed_points, moving_points = pair.landmark_points()
        scores += _distances("tre", point_distances(field.transform_points(fixed_points), moving_points))
    if pair.truth:
        points = _judged_points(pair.truth, fixed, moving)
        errors = point_distances(field.transform_points(points), pair.truth.transform_points(points))
        scores += _distances("error", errors)
    return scores


def _smoothness(field: DisplacementField) -> list[Score]:
    quality = field_quality(field.to_voxels())
    return [
        Score("folded_percent", quality.folded_percent),
        Score("ndv_percent", quality.ndv_percent),
        Score("sdlogj", quality.sdlogj),
        Score("sdlogj_l2r", quality.sdlogj_learn2reg),
    ]


def _distances(prefix: str, distances: FloatArray) -> list[Score]:
    return [
        Score(f"{prefix}_mean_mm", float(distances.mean())),
        Score(f"{prefix}_p95_mm", float(np.percentile(distances, 95))),
        Score(f"{prefix}_max_mm", float(distances.max())),
    ]


def _label_scores(
    wanted: Sequence[Label],
    field: DisplacementField,
    fixed_image: Image,
    moving_image: Image,
    region: BoolArray | None,
) -> list[Score]:
    fixed, moving = _whole_numbers(fixed_image), _whole_numbers(moving_image)
    warped = _whole_numbers(field.warp(moving_image, Interpolation.NEAREST, default=0))
    if region is not None:
        fixed, warped = within(fixed, region), within(warped, region)
    present = set(common_labels(_whole_numbers(fixed_image), moving))
    labels = {label.value: label for label in wanted if label.value in present}
    grid = fixed_image.grid
    centers = center_distance_per_label(fixed, warped, labels, grid)
    for value in (value for value, label in labels.items() if label.open_ended):
        centers[value] = distance_per_slice(fixed == value, warped == value, grid)
    # A label that the transform drove out of the compared region altogether is an overlap of nothing.
    overlaps = {v: 0.0 if math.isnan(d) else d for v, d in dice_per_label(fixed, warped, labels).items()}
    surfaces = hausdorff95_per_label(fixed, warped, labels, grid.spacing)
    per_metric = {"dice": overlaps, "hd95_mm": surfaces, "center_mm": centers}
    return [
        Score(metric, _finite(values[value]), label.name, label.group, label.scored)
        for metric, values in per_metric.items()
        for value, label in labels.items()
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def distance_per_slice(fixed: BoolArray, warped: BoolArray, grid: Grid) -> float:
    """Mean distance in mm of the centers of two tubes within the slices (z) that hold both; NaN if none does.

    Where a contour ends and how thick it was drawn at each level says nothing about the match, and either would
    move a tube's whole center by centimeters.
    """
    distances = [
        math.dist(_center_in_world(fixed, z, grid), _center_in_world(warped, z, grid))
        for z in np.flatnonzero(fixed.any(axis=(1, 2)) & warped.any(axis=(1, 2))).tolist()
    ]
    return float(np.mean(distances)) if distances else math.nan


def _center_in_world(mask: BoolArray, z: int, grid: Grid) -> list[float]:
    y, x = np.nonzero(mask[z])
    return [float(value) for value in grid.to_world(np.array([x.mean(), y.mean(), z]))]


def _region(pair: Pair, fixed: Image, moving: Image, inside: BoolArray) -> BoolArray | None:
    if pair.region is Region.OVERLAP:
        return inside
    if pair.region is Region.COMMON_FRAME:
        moving_body = moving.with_data(torch.from_numpy(_body(moving).astype(np.float32)))
        moved = moving_body.resampled(fixed.grid, Interpolation.NEAREST, default=0).data.numpy() > 0.5
        return _body(fixed) & moved
    return None


def _mapped_inside(field: DisplacementField, moving: Image) -> BoolArray:
    """The fixed voxels that are mapped into the moving volume (z, y, x)."""
    everything = moving.with_data(torch.ones_like(moving.data))
    return field.warp(everything, Interpolation.NEAREST, default=0).data.numpy() > 0.5


def _judged_points(truth: Truth, fixed: Image, moving: Image) -> FloatArray:
    """World positions (n, 3) of the masked fixed voxels whose true partner has data in the moving volume."""
    mask = _head(fixed) if truth.mask is Mask.HEAD else _body(fixed)
    points = fixed.grid.to_world(np.argwhere(mask)[:, ::-1])
    partners = np.rint(moving.grid.to_voxel(truth.transform_points(points))).astype(np.int64)
    judged = np.all((partners >= 0) & (partners < np.asarray(moving.grid.size)), axis=1)
    if truth.mask is Mask.LIMB:
        x, y, z = partners[judged].T
        judged[judged] = moving.data.numpy()[z, y, x] > 0
    return points[judged]


def _still_displacements(
    field: DisplacementField, label_map: Image, label: int, region: BoolArray | None
) -> FloatArray:
    """Lengths in mm of the displacements at the spine: the label's voxels near its middle, behind its center."""
    bone = _whole_numbers(label_map) == label
    index = np.argwhere(bone if region is None else bone & region)
    world = label_map.grid.to_world(index[:, ::-1])
    middle = np.median(world, axis=0)
    spine = (np.abs(world[:, 0] - middle[0]) < STILL_WIDTH_MM) & (world[:, 1] > middle[1])
    z, y, x = index[spine].T
    return np.linalg.norm(field.data[0].numpy()[:, z, y, x], axis=0).astype(np.float64)


def _body(image: Image) -> BoolArray:
    """The body of a CT: denser than -500 HU, holes of each axial slice filled, the largest piece."""
    dense = sitk.GetImageFromArray((image.data.numpy() > BODY_HU).astype(np.uint8))
    slices = [sitk.BinaryFillhole(dense[:, :, z]) for z in range(dense.GetSize()[2])]
    return _largest_piece(sitk.BinaryMorphologicalOpening(sitk.JoinSeries(slices), [2, 2, 1]))


def _head(image: Image) -> BoolArray:
    """The head of an MR: above Otsu's threshold, closed and filled, the largest piece."""
    bright = sitk.OtsuThreshold(sitk.GetImageFromArray(image.data.numpy()), 0, 1)
    closed = sitk.BinaryMorphologicalClosing(bright, [3, 3, 3])
    return _largest_piece(sitk.BinaryFillhole(closed))


def _largest_piece(mask: sitk.Image) -> BoolArray:
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
    return sitk.GetArrayFromImage(pieces) == 1


def _whole_numbers(image: Image) -> LabelArray:
    return np.rint(image.data.numpy()).astype(np.int64)
