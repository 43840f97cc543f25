"""How right a displacement is: every kind of ground truth a pair has, by the library's own metrics.

`METRICS` names them for suites; a new one is a function from `Judged` to scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..field import DisplacementField
from ..grid import Grid
from ..image import Image
from ..image_io import read_image, read_labels
from ..metrics import (
    center_distance_per_label,
    common_labels,
    dice_per_label,
    field_quality,
    hausdorff95_per_label,
    point_distances,
    similarity,
    within,
)
from ..sampling import Interpolation
from .geometry import FloatArray
from .masks import BoolArray, body, judged_points, whole_numbers
from .pairs import Pair, Region
from .synthetic_pairs import near_sliding

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


@dataclass(frozen=True, eq=False)
class Judged:
    """A pair and the displacement that a method found for it.

    Args:
        pair: the pair, prepared.
        field: in mm, on the grid of the fixed volume on which the pair is judged.
    """

    pair: Pair
    field: DisplacementField

    @cached_property
    def fixed(self) -> Image:
        return read_image(self.pair.judged_volumes[0])

    @cached_property
    def moving(self) -> Image:
        return read_image(self.pair.judged_volumes[1])

    @cached_property
    def warped(self) -> Image:
        """The moving volume on the fixed grid."""
        return self.field.warp(self.moving)

    @cached_property
    def label_maps(self) -> tuple[Image, Image] | None:
        """Fixed and moving labels, each on its volume's grid."""
        if self.pair.label_maps is None:
            return None
        fixed, moving = self.pair.label_maps
        return read_labels(fixed, self.fixed), read_labels(moving, self.moving)

    @cached_property
    def warped_labels(self) -> Image | None:
        """The moving labels on the fixed grid."""
        return self.field.warp(self.label_maps[1], Interpolation.NEAREST, default=0) if self.label_maps else None

    @cached_property
    def inside(self) -> BoolArray:
        """The fixed voxels that are mapped into the moving volume (z, y, x)."""
        everything = self.moving.with_data(torch.ones_like(self.moving.data))
        return self.field.warp(everything, Interpolation.NEAREST, default=0).data.numpy() > 0.5

    @cached_property
    def region(self) -> BoolArray | None:
        """Where labels are compared; None for everywhere."""
        if self.pair.region is Region.OVERLAP:
            return self.inside
        if self.pair.region is Region.COMMON_FRAME:
            moving_body = self.moving.with_data(torch.from_numpy(body(self.moving).astype(np.float32)))
            moved = moving_body.resampled(self.fixed.grid, Interpolation.NEAREST, default=0).data.numpy() > 0.5
            return body(self.fixed) & moved
        return None


Metric = Callable[[Judged], list[Score]]


def evaluate(judged: Judged, metrics: Iterable[str]) -> list[Score]:
    """The scores of some metrics, those that the pair has no ground truth for left out.

    Raises:
        InputError: for a metric that there is not.
    """
    unknown = sorted(set(metrics) - METRICS.keys())
    if unknown:
        raise InputError(f"unknown metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    return [score for name in metrics for score in METRICS[name](judged)]


def coverage(judged: Judged) -> list[Score]:
    """`inside_percent`, how much of the fixed grid is mapped into the moving volume."""
    return [Score("inside_percent", 100 * float(judged.inside.mean()))]


def smoothness(judged: Judged) -> list[Score]:
    """`folded_percent`, `ndv_percent`, `sdlogj` and Learn2Reg's `sdlogj_l2r` of the whole map, start included."""
    quality = field_quality(judged.field.to_voxels())
    return [
        Score("folded_percent", quality.folded_percent),
        Score("ndv_percent", quality.ndv_percent),
        Score("sdlogj", quality.sdlogj),
        Score("sdlogj_l2r", quality.sdlogj_learn2reg),
    ]


def labels(judged: Judged) -> list[Score]:
    """`dice` (0 to 1), `hd95_mm` and `center_mm` of every label that both label maps have."""
    if judged.label_maps is None or judged.warped_labels is None:
        return []
    fixed, moving, warped = (whole_numbers(image) for image in (*judged.label_maps, judged.warped_labels))
    present = set(common_labels(fixed, moving))
    if judged.region is not None:
        fixed, warped = within(fixed, judged.region), within(warped, judged.region)
    wanted = {label.value: label for label in judged.pair.labels if label.value in present}
    grid = judged.field.grid
    centers = center_distance_per_label(fixed, warped, wanted, grid)
    for value in (value for value, label in wanted.items() if label.open_ended):
        centers[value] = distance_per_slice(fixed == value, warped == value, grid)
    # A label that the transform drove out of the compared region altogether is an overlap of nothing.
    overlaps = {v: 0.0 if math.isnan(d) else d for v, d in dice_per_label(fixed, warped, wanted).items()}
    surfaces = hausdorff95_per_label(fixed, warped, wanted, grid.spacing)
    per_metric = {"dice": overlaps, "hd95_mm": surfaces, "center_mm": centers}
    return [
        Score(metric, _finite(values[value]), label.name, label.group, label.scored)
        for metric, values in per_metric.items()
        for value, label in wanted.items()
    ]


def landmarks(judged: Judged) -> list[Score]:
    """`tre_*_mm` over the landmarks, and `rtre`: their mean over the fixed volume's diagonal."""
    if judged.pair.landmarks is None:
        return []
    fixed_points, moving_points = judged.pair.landmark_points()
    errors = point_distances(judged.field.transform_points(fixed_points), moving_points)
    diagonal = float(np.linalg.norm(judged.fixed.grid.extent))
    return [*distances("tre", errors), Score("rtre", float(errors.mean()) / diagonal)]


def truth(judged: Judged) -> list[Score]:
    """`error_*_mm` against a known transform, over the voxels of its mask."""
    if judged.pair.truth is None:
        return []
    points = judged_points(judged.pair.truth, judged.fixed, judged.moving)
    expected = judged.pair.truth.transform_points(points)
    return distances("error", point_distances(judged.field.transform_points(points), expected))


def sliding(judged: Judged) -> list[Score]:
    """`sliding_error_*_mm` against a known transform, only close to the surface where organs slide."""
    mask = None if judged.pair.truth is None else judged.pair.truth.mask
    near = near_sliding(mask) if isinstance(mask, Path) else None
    if judged.pair.truth is None or near is None:
        return []
    points = judged.fixed.grid.to_world(np.argwhere(near)[:, ::-1])
    expected = judged.pair.truth.transform_points(points)
    there = judged.moving.grid.contains(expected)
    return distances(
        "sliding_error", point_distances(judged.field.transform_points(points[there]), expected[there])
    )


def stillness(judged: Judged) -> list[Score]:
    """`still_*_mm`, the displacement of the spine where the common scanner frame says that it did not move."""
    if judged.pair.still_label is None or judged.label_maps is None:
        return []
    fixed = judged.label_maps[0]
    return distances("still", _still_displacements(judged, whole_numbers(fixed) == judged.pair.still_label))


def grey_values(judged: Judged) -> list[Score]:
    """`ncc` and `mutual_information` between the fixed and the warped volume, where they overlap."""
    if not judged.inside.any():
        return []
    values = similarity(judged.fixed.data, judged.warped.data, torch.from_numpy(judged.inside))
    return [
        Score("ncc", values["normalized_cross_correlation"]),
        Score("mutual_information", values["mutual_information"]),
    ]


METRICS: dict[str, Metric] = {
    "labels": labels,
    "landmarks": landmarks,
    "truth": truth,
    "sliding": sliding,
    "stillness": stillness,
    "smoothness": smoothness,
    "coverage": coverage,
    "similarity": grey_values,
}
"""What suites may ask for."""


def distances(prefix: str, values: FloatArray, label: str = "") -> list[Score]:
    """Mean, 95th percentile and largest of distances in mm, as three scores."""
    return [
        Score(f"{prefix}_mean_mm", float(values.mean()), label),
        Score(f"{prefix}_p95_mm", float(np.percentile(values, 95)), label),
        Score(f"{prefix}_max_mm", float(values.max()), label),
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


def _still_displacements(judged: Judged, bone: BoolArray) -> FloatArray:
    """Lengths in mm of the displacements at the spine: the label's voxels near its middle, behind its center."""
    grid = judged.field.grid
    index = np.argwhere(bone if judged.region is None else bone & judged.region)
    world = grid.to_world(index[:, ::-1])
    middle = np.median(world, axis=0)
    spine = (np.abs(world[:, 0] - middle[0]) < STILL_WIDTH_MM) & (world[:, 1] > middle[1])
    z, y, x = index[spine].T
    return np.linalg.norm(judged.field.data[0].numpy()[:, z, y, x], axis=0).astype(np.float64)
