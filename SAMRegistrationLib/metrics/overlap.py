"""How well labels agree: Dice, robust Hausdorff distance and distance of centers, label by label.

Label maps are integer arrays (z, y, x) with 0 for the background. A label counts only if both the fixed and
the moving label map hold it (Learn2Reg's rule); `warped` is the moving label map on the fixed grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..grid import Grid
from .surface import robust_hausdorff_distance

LabelMap = NDArray[Any]
Box = tuple[slice, ...]


def labels_in(label_map: LabelMap) -> list[int]:
    """The labels that a map holds, ascending, without the background."""
    return [int(label) for label in np.unique(label_map) if label != 0]


def common_labels(fixed: LabelMap, moving: LabelMap) -> list[int]:
    """The labels that both maps hold; the maps may lie on different grids."""
    return sorted(set(labels_in(fixed)) & set(labels_in(moving)))


def within(label_map: LabelMap, mask: NDArray[np.bool_]) -> LabelMap:
    """The label map with background outside a mask, to restrict any measure of this module to that mask.

    For distances between surfaces the mask's own border then counts as a surface of the labels it cuts.
    """
    return np.where(mask, label_map, 0)


def dice_per_label(fixed: LabelMap, warped: LabelMap, labels: Iterable[int]) -> dict[int, float]:
    """Dice overlap 2|A and B| / (|A| + |B|) of each label; NaN for one that neither map holds.

    Raises:
        ValueError: if the maps differ in shape.
    """
    _check_same_shape(fixed, warped)
    fixed_sizes, warped_sizes = _sizes(fixed), _sizes(warped)
    shared = _sizes(fixed[fixed == warped])
    overlaps = {}
    for label in labels:
        total = fixed_sizes.get(label, 0) + warped_sizes.get(label, 0)
        overlaps[label] = 2 * shared.get(label, 0) / total if total else math.nan
    return overlaps


def hausdorff95_per_label(
    fixed: LabelMap, warped: LabelMap, labels: Iterable[int], spacing: Sequence[float]
) -> dict[int, float]:
    """95 % robust Hausdorff distance of each label, in the unit of `spacing` (x, y, z).

    Learn2Reg reports voxels, which is a spacing of (1, 1, 1), whatever the grid's spacing is in mm.

    Returns:
        Infinity for a label that only one of both maps holds, NaN for one that neither does.

    Raises:
        ValueError: if the maps differ in shape.
    """
    _check_same_shape(fixed, warped)
    fixed_boxes, warped_boxes = label_boxes(fixed), label_boxes(warped)
    distances = {}
    for label in labels:
        boxes = [boxes[label] for boxes in (fixed_boxes, warped_boxes) if label in boxes]
        if len(boxes) < 2:
            distances[label] = math.inf if boxes else math.nan
            continue
        box = _union(*boxes)
        distances[label] = robust_hausdorff_distance(fixed[box] == label, warped[box] == label, spacing)
    return distances


def label_centers(label_map: LabelMap, grid: Grid) -> dict[int, NDArray[np.float64]]:
    """World position (LPS mm) of the center of mass of each label of a map on its grid."""
    occupied = np.nonzero(label_map)
    labels, index, sizes = np.unique(label_map[occupied], return_inverse=True, return_counts=True)
    voxel = np.stack([np.bincount(index, along) / sizes for along in occupied[::-1]], axis=-1)
    world = grid.to_world(voxel)
    return {int(label): center for label, center in zip(labels, world, strict=True)}


def center_distance_per_label(
    fixed: LabelMap, warped: LabelMap, labels: Iterable[int], grid: Grid
) -> dict[int, float]:
    """Distance in mm between the centers of mass of each label; infinity where one map lacks it."""
    fixed_centers, warped_centers = label_centers(fixed, grid), label_centers(warped, grid)
    return {
        label: float(np.linalg.norm(fixed_centers[label] - warped_centers[label]))
        if label in fixed_centers and label in warped_centers
        else math.inf
        for label in labels
    }


def label_boxes(label_map: LabelMap) -> dict[int, Box]:
    """The smallest box of slices around each label."""
    occupied = np.nonzero(label_map)
    values = label_map[occupied]
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    labels, starts = np.unique(values[order], return_index=True)
    lowest = [np.minimum.reduceat(along[order], starts) for along in occupied]
    highest = [np.maximum.reduceat(along[order], starts) for along in occupied]
    return {
        int(label): tuple(slice(int(low[i]), int(high[i]) + 1) for low, high in zip(lowest, highest, strict=True))
        for i, label in enumerate(labels)
    }


def _union(first: Box, second: Box) -> Box:
    pairs = zip(first, second, strict=True)
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)


def _sizes(label_map: LabelMap) -> dict[int, int]:
    labels, counts = np.unique(label_map, return_counts=True)
    return {int(label): int(count) for label, count in zip(labels, counts, strict=True)}


def _check_same_shape(fixed: LabelMap, warped: LabelMap) -> None:
    if fixed.shape != warped.shape:
        raise ValueError(f"label maps of different shapes: {fixed.shape} and {warped.shape}")
