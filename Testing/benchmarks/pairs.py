"""The committed list of benchmark pairs with their ground truth.

`pairs.json` names files of the data folder, relative to it; `choose_pairs.py` made that list once from a seed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
PAIRS_FILE = Path(__file__).with_name("pairs.json")


class Start(Enum):
    """What is known about the relative position of a pair before registration."""

    IDENTITY = "identity"
    """The world frames are shared, possibly up to an unknown offset."""
    CENTERS = "centers"
    """The world frames are unrelated: the initial alignment puts the volumes' centers on each other."""


class Region(Enum):
    """Where labels are compared."""

    EVERYWHERE = "everywhere"
    """On the whole fixed grid, moving labels being 0 outside their volume (as Learn2Reg does)."""
    COMMON_FRAME = "common frame"
    """Where both volumes have data under the identity; the same voxels for every method."""
    OVERLAP = "overlap"
    """Where the method's own transform stays inside the moving volume, for organs cut by a scan's end."""


class Mask(Enum):
    """Which fixed voxels count for the error of a known transform."""

    HEAD = "head"
    LIMB = "limb"


@dataclass(frozen=True)
class Label:
    """One label to score.

    Args:
        value: its number in both label maps.
        name: the organ.
        group: the row of the summary that it counts for.
        scored: whether it counts for the mean Dice; the others are reported only.
        open_ended: a tube whose contoured length is arbitrary: its center is compared slice by slice, where both
            label maps have it.
    """

    value: int
    name: str
    group: str
    scored: bool = True
    open_ended: bool = False


@dataclass(frozen=True)
class Truth:
    """The known transform, fixed world to moving world in LPS mm, and the mask in which it is judged.

    Exactly one of `matrix` (4x4) and `field` (a vector image u with x -> x + u(x)) is given.
    """

    mask: Mask
    matrix: FloatArray | None = None
    field: Path | None = None

    def transform_points(self, points_world: FloatArray) -> FloatArray:
        """Where the world points (n, 3) go. Outside the field's samples the nearest one counts."""
        if self.matrix is not None:
            return apply_matrix(self.matrix, points_world)
        image = sitk.ReadImage(str(self.field), sitk.sitkVectorFloat64)
        return points_world + _interpolate_vectors(image, points_world)


@dataclass(frozen=True)
class Pair:
    """Two volumes to register and what is known about the answer.

    Paths are absolute; `label_maps` are the fixed and the moving one. `still_label` is a label of the fixed map
    whose part at the spine did not move in the common frame. `moving_offset`, where given, is the rigid 4x4 matrix
    by which the moving volume is moved in world space (by its header only) before anything is registered: see
    `prepared`.
    """

    name: str
    family: str
    fixed: Path
    moving: Path
    start: Start
    region: Region = Region.EVERYWHERE
    label_maps: tuple[Path, Path] | None = None
    labels: tuple[Label, ...] = ()
    landmarks: Path | None = None
    truth: Truth | None = None
    still_label: int | None = None
    moving_offset: FloatArray | None = None

    def prepared(self, folder: Path) -> Pair:
        """The pair with the moving volume written into `folder` under its offset, if it has one."""
        if self.moving_offset is None:
            return self
        path = folder / f"{self.name}_moving.nii.gz"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            moved = moved_in_world(sitk.ReadImage(str(self.moving)), self.moving_offset)
            part = path.with_name(f"part_{path.name}")
            sitk.WriteImage(moved, str(part))
            part.replace(path)
        return replace(self, moving=path)

    def landmark_points(self) -> tuple[FloatArray, FloatArray]:
        """Fixed and moving landmarks, each (n, 3) in world mm.

        Raises:
            ValueError: if the pair has none.
        """
        if self.landmarks is None:
            raise ValueError(f"pair {self.name} has no landmarks")
        with self.landmarks.open(newline="") as stream:
            rows = [[float(value) for value in row] for row in list(csv.reader(stream))[1:]]
        table = np.asarray(rows)
        return table[:, :3], table[:, 3:6]

    def start_matrix(self) -> FloatArray:
        """The 4x4 world matrix of the initial alignment."""
        matrix = np.eye(4)
        if self.start is Start.CENTERS:
            fixed, moving = (sitk.ReadImage(str(path)) for path in (self.fixed, self.moving))
            matrix[:3, 3] = np.subtract(_center(moving), _center(fixed))
        return matrix


def load_pairs(data_dir: Path, suite: str = "issue2", names: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of a suite, in their committed order.

    Args:
        data_dir: the data folder, which holds manifest.json.
        suite: a key of `suites` in pairs.json.
        names: only these pairs or families.

    Raises:
        ValueError: for an unknown suite or name.
        FileNotFoundError: if a volume of a wanted pair is not in the data folder.
    """
    table = json.loads(PAIRS_FILE.read_text())
    if suite not in table["suites"]:
        raise ValueError(f"no suite {suite!r}; there are {', '.join(sorted(table['suites']))}")
    families = table["suites"][suite]
    entries = [entry for entry in table["pairs"] if entry["family"] in families]
    if names:
        known = {entry["name"] for entry in entries} | {entry["family"] for entry in entries}
        if unknown := sorted(set(names) - known):
            raise ValueError(f"no pair or family {', '.join(unknown)} in suite {suite!r}")
        entries = [entry for entry in entries if entry["name"] in names or entry["family"] in names]
    label_tables = {key: _labels(rows) for key, rows in table["label_tables"].items()}
    return [_pair(entry, label_tables, data_dir) for entry in entries]


def apply_matrix(matrix: FloatArray, points: FloatArray) -> FloatArray:
    """A 4x4 matrix on points (..., 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def moved_in_world(image: sitk.Image, matrix: FloatArray) -> sitk.Image:
    """The same voxels at the place where the rigid 4x4 matrix puts them; nothing is resampled."""
    moved = sitk.Image(image)
    direction = matrix[:3, :3] @ np.reshape(image.GetDirection(), (3, 3))
    moved.SetDirection(direction.ravel().tolist())
    moved.SetOrigin(apply_matrix(matrix, np.asarray(image.GetOrigin())).tolist())
    return moved


def _labels(rows: list[dict[str, Any]]) -> tuple[Label, ...]:
    return tuple(Label(**row) for row in rows)


def _pair(entry: dict[str, Any], label_tables: dict[str, tuple[Label, ...]], data_dir: Path) -> Pair:
    fixed, moving = data_dir / entry["fixed"], data_dir / entry["moving"]
    for file in (fixed, moving):
        if not file.is_file():
            raise FileNotFoundError(f"pair {entry['name']} needs {file}, which is not there")
    return Pair(
        name=entry["name"],
        family=entry["family"],
        fixed=fixed,
        moving=moving,
        start=Start(entry["start"]),
        region=Region(entry.get("region", Region.EVERYWHERE.value)),
        label_maps=_label_maps(entry, data_dir),
        labels=label_tables[entry["labels"]] if "labels" in entry else (),
        landmarks=data_dir / entry["landmarks"] if "landmarks" in entry else None,
        truth=_truth(entry["truth"], data_dir) if "truth" in entry else None,
        still_label=entry.get("still_label"),
        moving_offset=np.asarray(entry["moving_offset"]) if "moving_offset" in entry else None,
    )


def _label_maps(entry: dict[str, Any], data_dir: Path) -> tuple[Path, Path] | None:
    if "labels" not in entry:
        return None
    return data_dir / entry["fixed_labels"], data_dir / entry["moving_labels"]


def _truth(entry: dict[str, Any], data_dir: Path) -> Truth:
    mask = Mask(entry["mask"])
    if "matrix" in entry:
        return Truth(mask, matrix=np.asarray(entry["matrix"]))
    return Truth(mask, field=data_dir / entry["field"])


def _center(image: sitk.Image) -> FloatArray:
    middle = [(n - 1) / 2 for n in image.GetSize()]
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(middle))


def _interpolate_vectors(image: sitk.Image, points: FloatArray) -> FloatArray:
    from scipy.ndimage import map_coordinates

    to_index = np.linalg.inv(np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing()))
    index = (points - np.asarray(image.GetOrigin())) @ to_index.T
    array = sitk.GetArrayViewFromImage(image)
    components = [
        map_coordinates(array[..., axis], index[:, ::-1].T, order=1, mode="nearest") for axis in range(3)
    ]
    return np.stack(components, axis=-1)
