"""Pairs of volumes that lie in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .datasets import Dataset
from .pairs import Mask, Offset, Pair, Preparation, Region, Resampled, Start, Truth
from .starts import hard_start


def read_pairs(dataset: Dataset) -> list[Pair]:
    """One pair per entry; paths are relative to the dataset's root.

    Raises:
        InputError: if an entry names a file or a list of labels that there is not, or lacks what it needs.
    """
    return [_pair(entry, dataset) for entry in dataset.entries]


def _pair(entry: dict[str, Any], dataset: Dataset) -> Pair:
    name = entry["name"]
    try:
        return Pair(
            name=name,
            family=entry.get("family", dataset.name),
            fixed=_file(entry["fixed"], name, dataset),
            moving=_file(entry["moving"], name, dataset),
            start=Start(entry.get("start", "identity")),
            same_contrast=entry.get("same_contrast", True),
            region=Region(entry.get("region", Region.EVERYWHERE.value)),
            label_maps=_label_maps(entry, dataset),
            labels=dataset.label_tables[entry["labels"]] if "labels" in entry else (),
            landmarks=_file(entry["landmarks"], name, dataset) if "landmarks" in entry else None,
            truth=_truth(entry["truth"], name, dataset) if "truth" in entry else None,
            still_label=entry.get("still_label"),
            preparation=_preparation(entry),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"pair {name!r} of the suite: {error}") from error


def _file(path: str, pair: str, dataset: Dataset) -> Path:
    file = dataset.root / path
    if not file.is_file():
        raise InputError(f"pair {pair!r} needs {file}, which is not there (see --data)")
    return file


def _label_maps(entry: dict[str, Any], dataset: Dataset) -> tuple[Path, Path] | None:
    if "labels" not in entry:
        return None
    fixed, moving = (_file(entry[f"{role}_labels"], entry["name"], dataset) for role in ("fixed", "moving"))
    return fixed, moving


def _truth(entry: dict[str, Any], pair: str, dataset: Dataset) -> Truth:
    rules = {mask.value: mask for mask in Mask}
    mask = rules[entry["mask"]] if entry["mask"] in rules else _file(entry["mask"], pair, dataset)
    if "matrix" in entry:
        return Truth(mask, matrix=np.asarray(entry["matrix"]))
    return Truth(mask, field=_file(entry["field"], pair, dataset))


def _preparation(entry: dict[str, Any]) -> Preparation | None:
    if "moving_offset" in entry:
        return Offset(np.asarray(entry["moving_offset"]))
    if "size" in entry:
        x, y, z = entry["size"]
        return Resampled((int(x), int(y), int(z)), float(entry["spacing"]))
    return hard_start(entry["hard_start"]) if "hard_start" in entry else None
