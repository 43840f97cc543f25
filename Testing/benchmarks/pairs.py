"""The committed list of benchmark pairs with their ground truth.

`pairs.json` names files of the data folder, relative to it; `choose_pairs.py` made that list once from a seed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .geometry import FloatArray, apply_matrix, center_of, moved_in_world
from .starts import SEED, Cut, HardStart, Turn, cut_levels, drawn_turn, kept, turned

PAIRS_FILE = Path(__file__).with_name("pairs.json")
HARD_STARTS_OF = "openkbp_inter"
"""The family of which hard starts are made."""


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
    `prepared`. `hard_start` makes the start worse than it is, see `starts`; where that cuts volumes, `uncut` are
    the whole fixed and moving volumes, on which the answer is judged.
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
    hard_start: HardStart | None = None
    uncut: tuple[Path, Path] | None = None

    @property
    def judged_volumes(self) -> tuple[Path, Path]:
        """The fixed and the moving volume on which the answer is judged."""
        return self.uncut or (self.fixed, self.moving)

    def prepared(self, folder: Path) -> Pair:
        """The pair, its volumes written into `folder` as its offset or hard start wants them, if it has one."""
        if self.moving_offset is not None:
            moving = sitk.ReadImage(str(self.moving))
            moved = _stored(folder, f"{self.name}_moving", moved_in_world(moving, self.moving_offset))
            return replace(self, moving=moved)
        if isinstance(self.hard_start, Turn):
            return self._turned(folder, self.hard_start)
        if isinstance(self.hard_start, Cut):
            return self._cut(folder, self.hard_start)
        return self

    def _turned(self, folder: Path, turn: Turn) -> Pair:
        (_, moving), (_, labels) = self._read_all()
        moved = turned(turn, moving, labels)
        names = f"{self.name}_moving", f"{self.name}_moving_labels"
        moving_file, labels_file = (_stored(folder, name, image) for name, image in zip(names, moved, strict=True))
        return replace(self, moving=moving_file, label_maps=(self._label_files()[0], labels_file))

    def _cut(self, folder: Path, cut: Cut) -> Pair:
        volumes, labels = self._read_all()
        levels = cut_levels(volumes, labels, cut.organs)
        fixed = _stored(folder, f"{self.name}_fixed", kept(volumes[0], levels.fixed))
        moving = _stored(folder, f"{self.name}_moving", kept(volumes[1], levels.moving))
        return replace(self, fixed=fixed, moving=moving, uncut=(self.fixed, self.moving))

    def _read_all(self) -> tuple[tuple[sitk.Image, sitk.Image], tuple[sitk.Image, sitk.Image]]:
        fixed, moving, *labels = (
            sitk.ReadImage(str(path)) for path in (self.fixed, self.moving, *self._label_files())
        )
        return (fixed, moving), (labels[0], labels[1])

    def _label_files(self) -> tuple[Path, Path]:
        if self.label_maps is None:
            raise ValueError(f"pair {self.name} has no labels")
        return self.label_maps

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
            matrix[:3, 3] = np.subtract(center_of(moving), center_of(fixed))
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
    own = [_Choice(entry["name"], entry["family"], entry) for entry in table["pairs"]]
    choices = [choice for choice in (*own, *_hard_choices(table)) if choice.family in families]
    if names:
        known = {choice.name for choice in choices} | set(families)
        if unknown := sorted(set(names) - known):
            raise ValueError(f"no pair or family {', '.join(unknown)} in suite {suite!r}")
        choices = [choice for choice in choices if choice.name in names or choice.family in names]
    label_tables = {key: _labels(rows) for key, rows in table["label_tables"].items()}
    return [
        replace(
            _pair(choice.entry, label_tables, data_dir),
            name=choice.name,
            family=choice.family,
            hard_start=choice.hard_start,
        )
        for choice in choices
    ]


@dataclass(frozen=True)
class _Choice:
    """A pair that may be asked for, and the entry of pairs.json that it is made from."""

    name: str
    family: str
    entry: dict[str, Any]
    hard_start: HardStart | None = None


def _hard_choices(table: dict[str, Any]) -> list[_Choice]:
    """Every pair between subjects from every hard start; the families are called after the start."""
    entries = [entry for entry in table["pairs"] if entry["family"] == HARD_STARTS_OF]
    organs = tuple(row["value"] for row in table["label_tables"]["openkbp"] if not row["open_ended"])
    return [
        _Choice(f"{entry['name']}_{family.removeprefix('starts_')}", family, entry, start)
        for number, entry in enumerate(entries)
        for family, start in (
            ("starts_turned_45", drawn_turn(45.0, (SEED, number, 45))),
            ("starts_turned_90", drawn_turn(90.0, (SEED, number, 90))),
            ("starts_cut", Cut(organs)),
        )
    ]


def _stored(folder: Path, name: str, image: sitk.Image) -> Path:
    """Write an image once, complete or not at all, however many processes want it at the same time."""
    path = folder / f"{name}.nii.gz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part{os.getpid()}_{path.name}")
        sitk.WriteImage(image, str(part))
        part.replace(path)
    return path


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


def _interpolate_vectors(image: sitk.Image, points: FloatArray) -> FloatArray:
    from scipy.ndimage import map_coordinates

    to_index = np.linalg.inv(np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing()))
    index = (points - np.asarray(image.GetOrigin())) @ to_index.T
    array = sitk.GetArrayViewFromImage(image)
    components = [
        map_coordinates(array[..., axis], index[:, ::-1].T, order=1, mode="nearest") for axis in range(3)
    ]
    return np.stack(components, axis=-1)
