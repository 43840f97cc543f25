"""Labels before and after: overlap, surface distance, distance of centers, and how much lies in view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..field import DisplacementField
from ..image import Image
from ..metrics import (
    center_distance_per_label,
    dice_per_label,
    finite_mean,
    group_means,
    hausdorff95_per_label,
    labels_in,
    within,
)
from ..sampling import Interpolation

MEASURES = ("dice", "dice_in_view", "hd95_mm", "hd95_voxels", "center_distance_mm", "in_view")
OUT_OF_VIEW = -1.0

Measures = dict[str, dict[int, float]]


def evaluate_labels(
    fields: Mapping[str, DisplacementField],
    fixed_image: Image,
    moving_image: Image,
    region: torch.Tensor | None,
    wanted: Collection[int] | None,
    names: Mapping[int, str],
    groups: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """The part `labels` of an evaluation.

    Args:
        fields: the displacement before and after, on one grid.
        fixed_image: the fixed label map on that grid.
        moving_image: the moving label map on any grid.
        region: voxels (z, y, x) to which everything is restricted.
        wanted: the labels to look at, or None for all.
        names: names of labels.
        groups: named groups of labels to average.
    """
    grid = next(iter(fields.values())).grid
    fixed = _whole_numbers(fixed_image)
    fixed = fixed if region is None else within(fixed, region.cpu().numpy())
    present = {"fixed": set(labels_in(fixed)), "moving": set(labels_in(_whole_numbers(moving_image)))}
    if wanted is not None:
        present = {side: labels & set(wanted) for side, labels in present.items()}
    counted = sorted(present["fixed"] & present["moving"])
    measured = {
        state: _label_measures(field, fixed, moving_image, region, counted) for state, field in fields.items()
    }
    return {
        "counted": counted,
        "only_fixed": sorted(present["fixed"] - present["moving"]),
        "only_moving": sorted(present["moving"] - present["fixed"]),
        "lost": [label for label in counted if not np.isfinite(measured["after"]["hd95_mm"][label])],
        "voxel_volume_mm3": grid.voxel_volume,
        "mean": {state: _means(measures) for state, measures in measured.items()},
        "group_mean": {
            state: {name: group_means(values, groups) for name, values in measures.items()}
            for state, measures in measured.items()
        },
        "per_label": [
            {
                "label": label,
                "name": names.get(label, str(label)),
                "fixed_voxels": int(np.count_nonzero(fixed == label)),
                **{
                    state: {name: values[label] for name, values in measures.items()}
                    for state, measures in measured.items()
                },
            }
            for label in counted
        ],
    }


def _label_measures(
    field: DisplacementField,
    fixed: NDArray[np.int32],
    moving_image: Image,
    region: torch.Tensor | None,
    labels: Sequence[int],
) -> Measures:
    """Every measure of `MEASURES` for every label."""
    grid = field.grid
    warped = _whole_numbers(field.warp(moving_image, Interpolation.NEAREST, default=OUT_OF_VIEW))
    in_view = warped != OUT_OF_VIEW
    warped = within(warped, in_view if region is None else in_view & region.cpu().numpy())
    voxels = hausdorff95_per_label(fixed, warped, labels, (1, 1, 1))
    if len(set(grid.spacing)) == 1:
        millimeters = {label: distance * grid.spacing[0] for label, distance in voxels.items()}
    else:
        millimeters = hausdorff95_per_label(fixed, warped, labels, grid.spacing)
    sizes = np.bincount(fixed.ravel())
    seen = np.bincount(fixed[in_view], minlength=len(sizes))
    measures = (
        dice_per_label(fixed, warped, labels),
        dice_per_label(within(fixed, in_view), warped, labels),
        millimeters,
        voxels,
        center_distance_per_label(fixed, warped, labels, grid),
        {label: float(seen[label] / sizes[label]) for label in labels},
    )
    return dict(zip(MEASURES, measures, strict=True))


def _means(measures: Measures) -> dict[str, float | None]:
    return {name: finite_mean(values.values()) for name, values in measures.items()}


def _whole_numbers(image: Image) -> NDArray[np.int32]:
    return image.data.round().to(torch.int32).cpu().numpy()
