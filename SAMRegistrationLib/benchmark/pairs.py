"""A pair to register, and what is known about the answer."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from .geometry import FloatArray, apply_matrix, center_of, moved_in_world, resampled, stored


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
    """Where both volumes show the body under the identity; the same voxels for every method."""
    OVERLAP = "overlap"
    """Where the method's own transform stays inside the moving volume, for organs cut by a scan's end."""


class Mask(Enum):
    """Which fixed voxels count for the error of a known transform, where no mask file says so."""

    HEAD = "head"
    LIMB = "limb"
    BODY = "body"


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
    """The known transform, fixed world to moving world in LPS mm, and where it is judged.

    Args:
        mask: a rule, or a label map on the fixed grid whose voxels other than 0 count.
        matrix: 4x4; exactly one of this and `field` is given.
        field: file of a vector image u, so that x goes to x + u(x).
    """

    mask: Mask | Path
    matrix: FloatArray | None = None
    field: Path | None = None

    def transform_points(self, points_world: FloatArray) -> FloatArray:
        """Where the world points (n, 3) go. Outside the field's samples the nearest one counts."""
        if self.matrix is not None:
            return apply_matrix(self.matrix, points_world)
        image = sitk.ReadImage(str(self.field), sitk.sitkVectorFloat64)
        return points_world + _interpolate_vectors(image, points_world)


class Preparation(Protocol):
    """Makes a pair's volumes from others when they are needed: moved, cut, deformed."""

    def prepare(self, pair: Pair, folder: Path) -> Pair:
        """The pair with its volumes (and labels, and truth) written into `folder`, once; see `geometry.stored`."""


@dataclass(frozen=True)
class Pair:
    """Two volumes to register and what is known about the answer.

    Args:
        name: unique in its suite.
        family: the pairs that are averaged together.
        fixed: the fixed volume.
        moving: the moving volume.
        start: what is known about their relative position.
        same_contrast: whether grey values mean the same in both; peers choose their similarity by it.
        region: where labels are compared.
        label_maps: of the fixed and of the moving volume.
        labels: the labels that are compared.
        landmarks: a table of corresponding points, `fixed_x,...,moving_z` in LPS mm.
        truth: the exact transform.
        still_label: a label of the fixed map whose part at the spine did not move in the common frame.
        preparation: how the volumes are made, where the files are not the volumes to register.
        uncut: the whole fixed and moving volumes on which the answer is judged, where cut ones are registered.
    """

    name: str
    family: str
    fixed: Path
    moving: Path
    start: Start
    same_contrast: bool = True
    region: Region = Region.EVERYWHERE
    label_maps: tuple[Path, Path] | None = None
    labels: tuple[Label, ...] = ()
    landmarks: Path | None = None
    truth: Truth | None = None
    still_label: int | None = None
    preparation: Preparation | None = None
    uncut: tuple[Path, Path] | None = None

    @property
    def judged_volumes(self) -> tuple[Path, Path]:
        """The fixed and the moving volume on which the answer is judged."""
        return self.uncut or (self.fixed, self.moving)

    def prepared(self, folder: Path) -> Pair:
        """The pair with volumes that can be read, written into `folder` where they must be made."""
        return self.preparation.prepare(self, folder) if self.preparation else self

    def landmark_points(self) -> tuple[FloatArray, FloatArray]:
        """Fixed and moving landmarks, each (n, 3) in world mm.

        Raises:
            ValueError: if the pair has none.
        """
        if self.landmarks is None:
            raise ValueError(f"pair {self.name} has no landmarks")
        with self.landmarks.open(newline="") as stream:
            rows = [[float(value) for value in row[:6]] for row in list(csv.reader(stream))[1:]]
        table = np.asarray(rows)
        return table[:, :3], table[:, 3:6]

    def start_matrix(self) -> FloatArray:
        """The 4x4 world matrix of the initial alignment."""
        matrix = np.eye(4)
        if self.start is Start.CENTERS:
            fixed, moving = (sitk.ReadImage(str(path)) for path in (self.fixed, self.moving))
            matrix[:3, 3] = np.subtract(center_of(moving), center_of(fixed))
        return matrix


@dataclass(frozen=True, eq=False)
class Offset:
    """The moving volume moved in world space by a rigid 4x4 matrix, by its header only."""

    matrix: FloatArray

    def prepare(self, pair: Pair, folder: Path) -> Pair:
        moving = sitk.ReadImage(str(pair.moving))
        return replace(
            pair,
            moving=stored(folder, f"{pair.name}_moving", moved_in_world(moving, self.matrix)),
            preparation=None,
        )


@dataclass(frozen=True)
class Resampled:
    """Both volumes on cubic voxels, so many of them around the volume's middle, to compare times at a stated size.

    Args:
        size: voxels (x, y, z); what lies beyond the volume gets its lowest value.
        spacing: their side in mm.
    """

    size: tuple[int, int, int]
    spacing: float

    def prepare(self, pair: Pair, folder: Path) -> Pair:
        fixed, moving = (
            stored(folder, f"{pair.name}_{role}", resampled(sitk.ReadImage(str(path)), self.size, self.spacing))
            for role, path in (("fixed", pair.fixed), ("moving", pair.moving))
        )
        return replace(pair, fixed=fixed, moving=moving, preparation=None)


def _interpolate_vectors(image: sitk.Image, points: FloatArray) -> FloatArray:
    from scipy.ndimage import map_coordinates

    to_index = np.linalg.inv(np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing()))
    index = (points - np.asarray(image.GetOrigin())) @ to_index.T
    array = sitk.GetArrayViewFromImage(image)
    components = [
        map_coordinates(array[..., axis], index[:, ::-1].T, order=1, mode="nearest") for axis in range(3)
    ]
    return np.stack(components, axis=-1)
