"""Maps from fixed world space to moving world space, both in LPS millimeters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .sampling import affine_map

FloatArray = NDArray[Any]


@runtime_checkable
class Transform(Protocol):
    """Where each fixed world point lies in the moving world (ITK's resampling direction)."""

    def map_world(self, points: Tensor) -> Tensor:
        """Moving world positions (3, ...) of fixed world positions (3, ...), in the points' own precision."""

    def to_sitk(self) -> sitk.Transform:
        """The same map as a SimpleITK transform."""


def transform_points(transform: Transform, points: ArrayLike) -> FloatArray:
    """Moving world positions (..., 3) of fixed world positions (..., 3), in double precision."""
    points = np.asarray(points, dtype=np.float64)
    columns = torch.from_numpy(np.ascontiguousarray(points.reshape(-1, 3).T))
    return transform.map_world(columns).numpy().T.reshape(points.shape)


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """An affine map of world space.

    Args:
        matrix: 4x4, from fixed world to moving world.

    Raises:
        ValueError: if the matrix is not an invertible affine 4x4 matrix.
    """

    matrix: FloatArray = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.allclose(matrix[3], (0, 0, 0, 1)) or not np.isfinite(matrix).all():
            raise ValueError("an affine transform needs a finite 4x4 matrix with last row 0 0 0 1")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise ValueError("an affine transform must be invertible")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def translation(cls, offset: ArrayLike) -> AffineTransform:
        """The shift by `offset` mm."""
        matrix = np.eye(4)
        matrix[:3, 3] = offset
        return cls(matrix)

    @classmethod
    def about_center(cls, linear: ArrayLike, center: ArrayLike, offset: ArrayLike = (0, 0, 0)) -> AffineTransform:
        """The linear 3x3 map about `center`, followed by a shift by `offset`."""
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        center = np.asarray(center, dtype=np.float64)
        matrix[:3, 3] = center + np.asarray(offset) - matrix[:3, :3] @ center
        return cls(matrix)

    def map_world(self, points: Tensor) -> Tensor:
        return affine_map(self.matrix, points)

    def transform_points(self, points: ArrayLike) -> FloatArray:
        """Moving world positions (..., 3) of fixed world positions (..., 3)."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def compose(self, first: AffineTransform) -> AffineTransform:
        """The map that applies `first`, then this one."""
        return AffineTransform(self.matrix @ first.matrix)

    def inverse(self) -> AffineTransform:
        """The map from moving world back to fixed world."""
        return AffineTransform(np.linalg.inv(self.matrix))

    def to_sitk(self) -> sitk.Transform:
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(tuple(self.matrix[:3, :3].ravel()))
        transform.SetTranslation(tuple(self.matrix[:3, 3]))
        return transform


@dataclass(frozen=True, eq=False)
class CompositeTransform:
    """Several maps, applied from the first to the last."""

    transforms: tuple[Transform, ...]

    def __init__(self, transforms: Iterable[Transform]) -> None:
        parts: list[Transform] = []
        for transform in transforms:
            parts.extend(transform.transforms if isinstance(transform, CompositeTransform) else (transform,))
        object.__setattr__(self, "transforms", tuple(parts))

    def map_world(self, points: Tensor) -> Tensor:
        for transform in self.transforms:
            points = transform.map_world(points)
        return points

    def transform_points(self, points: ArrayLike) -> FloatArray:
        """Moving world positions (..., 3) of fixed world positions (..., 3)."""
        return transform_points(self, points)

    def to_sitk(self) -> sitk.Transform:
        # ITK applies the transform that was added last first.
        composite = sitk.CompositeTransform(3)
        for transform in reversed(self.transforms):
            composite.AddTransform(transform.to_sitk())
        composite.FlattenTransform()
        return composite


@dataclass(frozen=True, eq=False)
class ItkTransform:
    """Any other SimpleITK transform (a B-spline from elastix, say), used as it is."""

    transform: sitk.Transform

    def map_world(self, points: Tensor) -> Tensor:
        flat = points.reshape(3, -1).T.double().cpu().numpy()
        mapped = np.array([self.transform.TransformPoint(point) for point in flat.tolist()]).reshape(-1, 3)
        return torch.from_numpy(mapped.T.copy()).to(points).view(points.shape)

    def transform_points(self, points: ArrayLike) -> FloatArray:
        """Moving world positions (..., 3) of fixed world positions (..., 3)."""
        return transform_points(self, points)

    def to_sitk(self) -> sitk.Transform:
        return self.transform
