"""What the query point network gets to see of a pair: two cubes of the same side, one around each body.

The published method crops both volumes and resizes them to 128 cubed. Here the cubes have one side in mm for the
two, so that a rigid motion stays one, and lie along the stored axes closest to L, P, S, so that it does not matter
how far apart in the world the two volumes are. Positions in a cube are from -1 to 1 along x, y, z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from ..body import Regions, looks_like_ct
from ..features.base import FeatureMap, Features
from ..grid import FloatArray, Grid
from ..image import Image
from ..resampling import resample

IMAGE_MM = 4.0
"""Volumes are brought to this spacing before the cubes are cut out."""

MARGIN = 1.05
"""Side of the cubes over the longest side of the larger body."""

_HU_RANGE = (-1000.0, 1000.0)
_PERCENTILES = (0.005, 0.995)


@dataclass(frozen=True, eq=False)
class Cube:
    """A cube in the world.

    Args:
        center: (3,) in LPS mm.
        axes: 3x3, its unit directions as columns.
        side: in mm.
    """

    center: FloatArray
    axes: FloatArray
    side: float

    def to_cube(self, world_points: ArrayLike) -> FloatArray:
        """Positions in the cube, -1 to 1 inside, of world positions (..., 3)."""
        return (np.asarray(world_points, dtype=np.float64) - self.center) @ self.axes / (self.side / 2)

    def to_world(self, cube_points: ArrayLike) -> FloatArray:
        """World positions (..., 3) of positions in the cube."""
        return np.asarray(cube_points, dtype=np.float64) @ self.axes.T * (self.side / 2) + self.center

    def grid(self, size: int) -> Grid:
        """The cube cut into size x size x size voxels."""
        spacing = self.side / size
        corner = self.center - self.axes @ np.full(3, (size - 1) / 2 * spacing)
        return Grid((size,) * 3, (spacing,) * 3, tuple(corner), tuple(self.axes.ravel()))


@dataclass(frozen=True, eq=False)
class QuizVolume:
    """One volume of a pair.

    Args:
        image: at about `IMAGE_MM`, axes closest to L, P, S.
        embedding: what `token_features` gives, or None.
        body: world positions (8, 3) of the corners of the body's box along the image's axes.
    """

    image: Image
    embedding: FeatureMap | None
    body: FloatArray

    @classmethod
    def of(cls, image: Image, features: Features | None = None) -> QuizVolume:
        """A volume, with its embedding where the network takes one."""
        regions = Regions.of(image, IMAGE_MM)
        embedding = None if features is None else token_features(features)
        return cls(regions.image, embedding, body_corners(regions.body, regions.image.grid))

    @property
    def center(self) -> FloatArray:
        """World position of the middle of the body's box."""
        return np.asarray(self.body.mean(axis=0))

    @property
    def longest_side(self) -> float:
        """Of the body's box, in mm."""
        return float(np.ptp(self.body @ self.image.grid.axes, axis=0).max())

    def cube(self, side: float) -> Cube:
        """The cube of that side around the body."""
        return Cube(self.center, self.image.grid.axes, side)


def body_corners(body: Tensor, grid: Grid) -> FloatArray:
    """World positions (8, 3) of the corners of the box of a mask (z, y, x), or of the grid where that is empty."""
    inside = torch.nonzero(body).flip(1)
    if len(inside) == 0:
        return grid.corners()
    lower, upper = inside.amin(dim=0).tolist(), (inside.amax(dim=0) + 1).tolist()
    return grid.cropped(lower, upper).corners()


def shared_cubes(reference: QuizVolume, search: QuizVolume) -> tuple[Cube, Cube]:
    """The cubes of a pair, of one side."""
    side = MARGIN * max(reference.longest_side, search.longest_side)
    return reference.cube(side), search.cube(side)


def cube_image(volume: QuizVolume, cube: Cube, size: int) -> Tensor:
    """The volume in its cube, (1, 1, size, size, size): -1000 to 1000 HU, or all but the extremes, as 0 to 1."""
    image = volume.image
    low, high = _HU_RANGE if looks_like_ct(image) else _range_of(image)
    values = image.resampled(cube.grid(size), default=low).tensor()
    return ((values - low) / max(high - low, 1e-6)).clamp(0, 1)


def cube_embedding(volume: QuizVolume, cube: Cube, size: int) -> Tensor:
    """The embedding in the cube, (1, E, size, size, size), zero where there is none.

    Raises:
        ValueError: if the volume came without.
    """
    if volume.embedding is None:
        raise ValueError("the network takes an embedding, and the volume came without one")
    return resample(volume.embedding.data.float(), volume.embedding.grid, cube.grid(size))


def token_features(features: Features) -> FeatureMap:
    """Fine and coarse vectors side by side on the coarse grid, the fine ones averaged over its voxels."""
    if features.coarse is None:
        return features.fine
    fine, coarse = features.fine, features.coarse
    steps = [round(c / f) for c, f in zip(coarse.grid.spacing[::-1], fine.grid.spacing[::-1], strict=True)]
    missing = [n * s - have for n, s, have in zip(coarse.grid.shape, steps, fine.grid.shape, strict=True)]
    padded = functional.pad(fine.data.float(), [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")
    averaged = functional.avg_pool3d(padded, steps)
    return FeatureMap(torch.cat([averaged, coarse.data.float()], dim=1), coarse.grid)


def _range_of(image: Image) -> tuple[float, float]:
    values = image.data.flatten()[:: max(1, image.data.numel() // 10**6)]
    low, high = torch.quantile(values, torch.tensor(_PERCENTILES, device=values.device)).tolist()
    return low, high
