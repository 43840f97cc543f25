"""Hard starts for a linear alignment: the moving patient turned, or little of the body in common.

Turned: the moving volume and its labels are turned about the patient's long axis through the volume's center, by
45 or 90 degrees to a drawn side, and shifted by up to 30 mm in a drawn direction, both by the header alone.

Cut: of the fixed volume the upper 60 % of the body's length are kept, of the moving volume everything below a
level of the same organs, chosen so that 40 % of the fixed or the moving length that is kept, whichever is less, is
common to both. Which levels correspond is read from the organs: the mean difference in height of the centers of
those that both subjects have. What is cut away is not given to any method; organs in it are judged through the
transform nevertheless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .geometry import FloatArray, center_of, moved_in_world, rigid_about, rotation, stored
from .pairs import Pair, Preparation

LARGEST_SHIFT_MM = 30.0
FIXED_KEPT = 0.6
COMMON_SHARE = 0.4
BODY_HU = -500.0

Interval = tuple[float, float]
"""Lower and upper height (world z) in mm."""


@dataclass(frozen=True)
class Turn:
    """The moving volume turned about the long axis (world z) through its center, and shifted.

    Args:
        degrees: counterclockwise about +z (LPS).
        shift: (x, y, z) in mm.
    """

    degrees: float
    shift: tuple[float, float, float]

    def prepare(self, pair: Pair, folder: Path) -> Pair:
        (_, moving), (_, labels) = _volumes_and_labels(pair)
        fixed_labels = _label_files(pair)[0]
        volume, label_map = (
            stored(folder, f"{pair.name}_{name}", image)
            for name, image in zip(("moving", "moving_labels"), turned(self, moving, labels), strict=True)
        )
        return replace(pair, moving=volume, label_maps=(fixed_labels, label_map), preparation=None)

    def matrix(self, moving: sitk.Image) -> FloatArray:
        """The rigid 4x4 matrix by which the moving volume is moved in world space."""
        turn = rotation(np.array([0.0, 0.0, 1.0]), np.radians(self.degrees))
        return rigid_about(turn, center_of(moving), np.asarray(self.shift))


@dataclass(frozen=True)
class Cut:
    """Both volumes cut across the long axis; `organs` are the label values by which heights correspond."""

    organs: tuple[int, ...]

    def prepare(self, pair: Pair, folder: Path) -> Pair:
        volumes, labels = _volumes_and_labels(pair)
        levels = cut_levels(volumes, labels, self.organs)
        fixed = stored(folder, f"{pair.name}_fixed", kept(volumes[0], levels.fixed))
        moving = stored(folder, f"{pair.name}_moving", kept(volumes[1], levels.moving))
        return replace(pair, fixed=fixed, moving=moving, uncut=(pair.fixed, pair.moving), preparation=None)


def hard_start(entry: dict[str, Any]) -> Preparation:
    """The start that an entry of a suite describes: `{"turn": DEGREES, "shift": MM}` or `{"cut": ORGANS}`."""
    if "turn" in entry:
        x, y, z = entry["shift"]
        return Turn(float(entry["turn"]), (x, y, z))
    return Cut(tuple(entry["cut"]))


def drawn_turn(degrees: float, seed: Sequence[int]) -> Turn:
    """A turn to a side and with a shift that the seed decides."""
    generator = np.random.default_rng(list(seed))
    direction = generator.normal(size=3)
    shift = direction / np.linalg.norm(direction) * generator.uniform(0, LARGEST_SHIFT_MM)
    return Turn(float(generator.choice([-1, 1]) * degrees), tuple(shift.round(6).tolist()))


def turned(turn: Turn, moving: sitk.Image, labels: sitk.Image) -> tuple[sitk.Image, sitk.Image]:
    """The moving volume and its label map, moved together."""
    matrix = turn.matrix(moving)
    return moved_in_world(moving, matrix), moved_in_world(labels, matrix)


@dataclass(frozen=True)
class Levels:
    """The heights that a cut keeps.

    Args:
        fixed: of the fixed volume.
        moving: of the moving volume.
        offset: moving height of an organ less its fixed height.
    """

    fixed: Interval
    moving: Interval
    offset: float

    @property
    def common(self) -> Interval:
        """What both show, in fixed heights."""
        lower, upper = (height - self.offset for height in self.moving)
        return max(lower, self.fixed[0]), min(upper, self.fixed[1])

    @property
    def shares(self) -> tuple[float, float]:
        """The common part of the fixed and of the moving length."""
        length = self.common[1] - self.common[0]
        return length / (self.fixed[1] - self.fixed[0]), length / (self.moving[1] - self.moving[0])


def cut_levels(
    volumes: tuple[sitk.Image, sitk.Image], labels: tuple[sitk.Image, sitk.Image], organs: Sequence[int]
) -> Levels:
    """Which heights of the fixed and the moving volume a cut keeps.

    Raises:
        ValueError: if the volumes are oblique, share no organ, or have too little in common to be cut.
    """
    offset = height_offset(labels, organs)
    fixed, moving = (body_heights(volume) for volume in volumes)
    lowest = fixed[1] - FIXED_KEPT * (fixed[1] - fixed[0])
    below = lowest + offset - moving[0]
    common = COMMON_SHARE * min(fixed[1] - lowest, below / (1 - COMMON_SHARE))
    if common <= 0:
        raise ValueError("the moving volume ends above the part of the fixed volume that is kept")
    return Levels((lowest, fixed[1]), (moving[0], lowest + offset + common), offset)


def height_offset(labels: tuple[sitk.Image, sitk.Image], organs: Sequence[int]) -> float:
    """Mean of how much higher (world z, mm) the organs' centers lie in the moving label map.

    Raises:
        ValueError: if the label maps share none of the organs.
    """
    heights = [_organ_heights(image, organs) for image in labels]
    shared = sorted(heights[0].keys() & heights[1].keys())
    if not shared:
        raise ValueError("the label maps share no organ")
    return float(np.mean([heights[1][organ] - heights[0][organ] for organ in shared]))


def _organ_heights(labels: sitk.Image, organs: Sequence[int]) -> dict[int, float]:
    _require_upright(labels)
    values = sitk.GetArrayViewFromImage(labels)
    heights = {}
    for organ in organs:
        slices = np.nonzero(values == organ)[0]
        if len(slices):
            heights[organ] = labels.GetOrigin()[2] + labels.GetSpacing()[2] * float(slices.mean())
    return heights


def body_heights(volume: sitk.Image) -> Interval:
    """The heights between which a CT shows anything denser than -500 HU, whole slices.

    Raises:
        ValueError: if the volume is oblique, or shows nothing.
    """
    _require_upright(volume)
    slices = np.flatnonzero((sitk.GetArrayViewFromImage(volume) > BODY_HU).any(axis=(1, 2)))
    if not len(slices):
        raise ValueError("the volume shows nothing denser than air")
    origin, spacing = volume.GetOrigin()[2], volume.GetSpacing()[2]
    return origin + (slices[0] - 0.5) * spacing, origin + (slices[-1] + 0.5) * spacing


def kept(volume: sitk.Image, heights: Interval) -> sitk.Image:
    """The slices whose centers lie between two heights."""
    _require_upright(volume)
    centers = volume.GetOrigin()[2] + volume.GetSpacing()[2] * np.arange(volume.GetSize()[2])
    slices = np.flatnonzero((centers >= heights[0]) & (centers <= heights[1]))
    return volume[:, :, int(slices[0]) : int(slices[-1]) + 1]


def _volumes_and_labels(pair: Pair) -> tuple[tuple[sitk.Image, sitk.Image], tuple[sitk.Image, sitk.Image]]:
    files = (pair.fixed, pair.moving, *_label_files(pair))
    fixed, moving, *labels = (sitk.ReadImage(str(path)) for path in files)
    return (fixed, moving), (labels[0], labels[1])


def _label_files(pair: Pair) -> tuple[Path, Path]:
    if pair.label_maps is None:
        raise ValueError(f"pair {pair.name} has no labels")
    return pair.label_maps


def _require_upright(volume: sitk.Image) -> None:
    if not np.allclose(volume.GetDirection(), np.eye(3).ravel(), atol=1e-6):
        raise ValueError("only volumes with axes along L, P, S can be cut")
