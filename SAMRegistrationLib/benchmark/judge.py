"""From what a method left behind to scores and to the slices that pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..field import DisplacementField, displacement_on
from ..image_io import read_image
from ..transforms import AffineTransform, CompositeTransform, Transform
from .masks import whole_numbers
from .metrics import Judged, Score, evaluate
from .pairs import Pair
from .results import ResultFiles


@dataclass(frozen=True)
class Verdict:
    """How good an answer is.

    Args:
        scores: its scores.
        matrix: the whole map as a 4x4 world matrix, where it is affine.
    """

    scores: list[Score]
    matrix: list[list[float]] | None


def judge(
    pair: Pair, parts: Sequence[dict[str, Any]], metrics: Sequence[str], files: ResultFiles, keep_field: bool
) -> Verdict:
    """Score an outcome's parts (see `peers.contract.Outcome`) and keep what pictures need.

    Raises:
        ValueError: if a part is no usable transform.
    """
    transform = transform_of_parts(parts)
    field = displacement_on(transform, read_image(pair.judged_volumes[0]).grid)
    if not bool(torch.isfinite(field.data).all()):
        raise ValueError("the displacement is not finite everywhere")
    judged = Judged(pair, field)
    if keep_field:
        files.displacement.parent.mkdir(parents=True, exist_ok=True)
        np.save(files.displacement, field.data.cpu().numpy())
    return Verdict(_scored(judged, metrics, files), _matrix(transform))


def judge_again(pair: Pair, metrics: Sequence[str], files: ResultFiles) -> list[Score]:
    """Score a kept displacement anew: after a change of metrics or labels."""
    data = torch.from_numpy(np.load(files.displacement))
    field = DisplacementField(data, read_image(pair.judged_volumes[0]).grid)
    return _scored(Judged(pair, field), metrics, files)


def _scored(judged: Judged, metrics: Sequence[str], files: ResultFiles) -> list[Score]:
    scores = evaluate(judged, metrics)
    files.slices.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(files.slices, **slices_of(judged))
    return scores


def transform_of_parts(parts: Sequence[dict[str, Any]]) -> CompositeTransform:
    """The map that an outcome's parts make up, applied from the first to the last."""
    return CompositeTransform(_transform(part) for part in parts)


def _transform(part: dict[str, Any]) -> Transform:
    if "matrix" in part:
        return AffineTransform(np.asarray(part["matrix"]))
    return DisplacementField.from_sitk(sitk.ReadImage(part["field"]))


def _matrix(composite: CompositeTransform) -> list[list[float]] | None:
    whole = np.eye(4)
    for transform in composite.transforms:
        if not isinstance(transform, AffineTransform):
            return None
        whole = transform.matrix @ whole
    return whole.tolist()


def slices_of(judged: Judged) -> dict[str, Any]:
    """One slice along each axis of the fixed volume, the warped one and both label maps, and voxel spacings.

    The slices go through the middle of what counts: the labels, or else the volume.
    """
    fixed, warped = judged.fixed.data.numpy(), judged.warped.data.numpy()
    maps: dict[str, Any] = {}
    index = [size // 2 for size in fixed.shape]
    if judged.label_maps is not None and judged.warped_labels is not None:
        maps = {
            "fixed_labels": whole_numbers(judged.label_maps[0]).astype(np.uint16),
            "warped_labels": whole_numbers(judged.warped_labels).astype(np.uint16),
        }
        wanted = np.isin(maps["fixed_labels"], [label.value for label in judged.pair.labels])
        if wanted.any():
            index = [int(np.median(axis)) for axis in np.nonzero(wanted)]
    volumes = {"fixed": fixed.astype(np.float32), "warped": warped.astype(np.float32), **maps}
    cut = {
        f"{name}_{axis}": np.take(volume, index[number], axis=number)
        for name, volume in volumes.items()
        for number, axis in enumerate("zyx")
    }
    return cut | {"spacing": np.asarray(judged.field.grid.spacing)}
