"""The geometry of a volume as a type: size, spacing, origin and direction in LPS millimeters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import SimpleITK as sitk

FloatArray = NDArray[Any]
IDENTITY_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """A regular, possibly oblique grid of voxels in world space (LPS mm).

    Voxel coordinates are (x, y, z) with the center of the first voxel at 0; a voxel reaches from -0.5 to 0.5.

    Args:
        size: number of voxels along x, y, z.
        spacing: distance of neighboring voxel centers in mm along x, y, z.
        origin: world position of the first voxel's center.
        direction: row-major 3x3 matrix, whose columns are the world directions of the x, y and z axes.

    Raises:
        ValueError: if a size or spacing is not positive, a number not finite or the direction not orthonormal.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY_DIRECTION

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(int(n) for n in self.size))
        for name in ("spacing", "origin", "direction"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.size) != 3 or min(self.size) < 1:
            raise ValueError(f"a grid needs three positive sizes, not {self.size}")
        if len(self.spacing) != 3 or not all(0 < value < math.inf for value in self.spacing):
            raise ValueError(f"a grid needs three positive spacings, not {self.spacing}")
        if len(self.origin) != 3 or not np.isfinite(self.origin).all():
            raise ValueError(f"a grid needs an origin of three finite coordinates, not {self.origin}")
        if len(self.direction) != 9:
            raise ValueError(f"a grid needs nine direction cosines, not {len(self.direction)}")
        axes = self.axes
        if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
            raise ValueError("the axis directions of a grid must be orthonormal")

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Grid:
        """The grid of a 3D SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_voxel_to_world(cls, size: Sequence[int], matrix: ArrayLike) -> Grid:
        """The grid of a given size whose 4x4 voxel-to-world matrix is `matrix` (no shear)."""
        matrix = np.asarray(matrix, dtype=np.float64)
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        direction = matrix[:3, :3] / spacing
        return cls(_triple(size), _triple(spacing), _triple(matrix[:3, 3]), tuple(direction.ravel()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x)."""
        x, y, z = self.size
        return z, y, x

    @property
    def axes(self) -> FloatArray:
        """3x3 matrix whose columns are the unit directions of the x, y and z axes."""
        return np.asarray(self.direction, dtype=np.float64).reshape(3, 3)

    @property
    def extent(self) -> tuple[float, float, float]:
        """Side lengths in mm along x, y, z, from outer edge to outer edge."""
        x, y, z = (n * s for n, s in zip(self.size, self.spacing, strict=True))
        return x, y, z

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in cubic mm."""
        return float(np.prod(self.spacing))

    @property
    def number_of_voxels(self) -> int:
        return int(np.prod(self.size))

    @cached_property
    def voxel_to_world(self) -> FloatArray:
        """4x4 matrix from voxel coordinates to world mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    @cached_property
    def world_to_voxel(self) -> FloatArray:
        """4x4 matrix from world mm to voxel coordinates."""
        return np.linalg.inv(self.voxel_to_world)

    def to_world(self, voxel_points: ArrayLike) -> FloatArray:
        """World positions (..., 3) of voxel coordinates (..., 3)."""
        return _apply(self.voxel_to_world, voxel_points)

    def to_voxel(self, world_points: ArrayLike) -> FloatArray:
        """Voxel coordinates (..., 3) of world positions (..., 3)."""
        return _apply(self.world_to_voxel, world_points)

    @property
    def center(self) -> FloatArray:
        """World position of the middle of the box."""
        return self.to_world((np.asarray(self.size) - 1) / 2)

    def corners(self) -> FloatArray:
        """World positions (8, 3) of the outer corners of the box."""
        edges = [(-0.5, n - 0.5) for n in self.size]
        return self.to_world(np.stack(np.meshgrid(*edges, indexing="ij"), -1).reshape(-1, 3))

    def contains(self, world_points: ArrayLike) -> NDArray[np.bool_]:
        """Which of the world positions (..., 3) lie inside the box, edges included."""
        voxel = self.to_voxel(world_points)
        tolerance = 1e-6
        return np.all((voxel >= -0.5 - tolerance) & (voxel <= np.asarray(self.size) - 0.5 + tolerance), axis=-1)

    def resampled(self, spacing: float | Sequence[float]) -> Grid:
        """The grid of given spacing that covers the same box, centered on it; at least one voxel per axis."""
        new_spacing = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,))
        size = np.maximum(np.ceil(np.asarray(self.extent) / new_spacing - 1e-3), 1).astype(int)
        return self._centered(size, new_spacing)

    def resized(self, size: Sequence[int]) -> Grid:
        """The grid with `size` voxels that covers exactly the same box."""
        return self._centered(np.asarray(size), np.asarray(self.extent) / np.asarray(size))

    def _centered(self, size: NDArray[Any], spacing: NDArray[Any]) -> Grid:
        origin = self.center - self.axes @ ((size - 1) / 2 * spacing)
        return Grid(_triple(size), _triple(spacing), _triple(origin), self.direction)

    def strided(self, stride: int | Sequence[int], offset: float = 0.0, size: Sequence[int] | None = None) -> Grid:
        """The grid whose voxel i lies at voxel `i * stride + offset` of this one (a strided network's output)."""
        strides = np.broadcast_to(np.asarray(stride), (3,))
        new_size = size if size is not None else -(-np.asarray(self.size) // strides)
        spacing = np.asarray(self.spacing) * strides
        origin = self.to_world(np.full(3, offset))
        return Grid(_triple(new_size), _triple(spacing), _triple(origin), self.direction)

    def cropped(self, lower: Sequence[int], upper: Sequence[int]) -> Grid:
        """The part from voxel `lower` up to, not including, voxel `upper`; may also reach outside."""
        size = np.asarray(upper) - np.asarray(lower)
        return Grid(_triple(size), self.spacing, _triple(self.to_world(lower)), self.direction)

    def padded(self, voxels: int | Sequence[int]) -> Grid:
        """The grid grown by `voxels` on both sides of each axis."""
        margin = np.broadcast_to(np.asarray(voxels), (3,))
        return self.cropped((-margin).tolist(), (np.asarray(self.size) + margin).tolist())

    def reordered(self, order: Sequence[int], flips: Sequence[bool]) -> Grid:
        """The same voxels stored differently: axis `order[i]` becomes axis i, reversed where `flips[i]`."""
        axes = list(order)
        first_voxel = np.zeros(3)
        first_voxel[axes] = np.where(flips, np.asarray(self.size)[axes] - 1, 0)
        direction = self.axes[:, axes] * np.where(flips, -1.0, 1.0)
        return Grid(
            _triple(self.size[axis] for axis in axes),
            _triple(self.spacing[axis] for axis in axes),
            _triple(self.to_world(first_voxel)),
            tuple(direction.ravel()),
        )

    def isclose(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Whether both grids have the same size and their corners agree to `tolerance` mm."""
        return self.size == other.size and bool(
            np.allclose(self.corners(), other.corners(), rtol=0, atol=tolerance)
        )

    def overlap(self, other: Grid) -> float:
        """The fraction of this box's volume that lies inside the other box (by sampling, to about 1 %)."""
        steps = [(np.arange(24) + 0.5) / 24 * n - 0.5 for n in self.size]
        samples = self.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3))
        return float(other.contains(samples).mean())


def _triple(values: Any) -> tuple[Any, Any, Any]:
    x, y, z = values
    return x, y, z


def _apply(matrix: FloatArray, points: ArrayLike) -> FloatArray:
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
