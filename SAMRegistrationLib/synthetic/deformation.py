"""A map from fixed to moving world that is known everywhere, and the moving volume that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..field import DisplacementField
from ..grid import Grid
from ..image import Image
from ..sampling import Interpolation, slabs, voxel_mesh
from ..transforms import AffineTransform

INVERSE_TOLERANCE_MM = 2e-3
INVERSE_ITERATIONS = 200
SMALLEST_SLIP_MM = 1.0


class Step(Protocol):
    """An invertible map of world space (LPS mm)."""

    def map_world(self, points: Tensor) -> Tensor:
        """Where points (3, ...) go."""

    def unmap_world(self, points: Tensor) -> Tensor:
        """Where points (3, z, y, x) came from."""

    def slip(self, points: Tensor) -> Tensor | None:
        """By how many mm (...) what lies inside a sliding surface moves along it near points (3, ...).

        Positive inside the surface, negative outside; None where nothing slides.
        """


@dataclass(frozen=True, eq=False)
class LinearMotion:
    """An affine map as a step."""

    transform: AffineTransform

    def map_world(self, points: Tensor) -> Tensor:
        return self.transform.map_world(points)

    def unmap_world(self, points: Tensor) -> Tensor:
        return self.transform.inverse().map_world(points)

    def slip(self, points: Tensor) -> Tensor | None:  # noqa: ARG002
        return None


@dataclass(frozen=True, eq=False)
class ElasticMotion:
    """A smooth displacement field that vanishes toward the border of its grid, as a step."""

    field: DisplacementField

    def map_world(self, points: Tensor) -> Tensor:
        return self.field.map_world(points)

    def unmap_world(self, points: Tensor) -> Tensor:
        inverse, residual = self.field.inverse_at(points, INVERSE_ITERATIONS, INVERSE_TOLERANCE_MM)
        if residual > 2 * INVERSE_TOLERANCE_MM:
            raise ValueError(f"the field cannot be inverted: {residual:.3f} mm remain")
        return points + inverse

    def slip(self, points: Tensor) -> Tensor | None:  # noqa: ARG002
        return None


@dataclass(frozen=True, eq=False)
class Deformation:
    """The map from fixed to moving world that applies `steps` from the first to the last."""

    steps: tuple[Step, ...]

    def then(self, later: Deformation) -> Deformation:
        """This map, followed by another."""
        return Deformation((*self.steps, *later.steps))

    def map_world(self, points: Tensor) -> Tensor:
        """Moving world positions (3, ...) of fixed world positions (3, ...), in the points' own precision."""
        for step in self.steps:
            points = step.map_world(points)
        return points

    def unmap_world(self, points: Tensor) -> Tensor:
        """Fixed world positions (3, z, y, x) of moving world positions, to about 0.002 mm."""
        for step in reversed(self.steps):
            points = step.unmap_world(points)
        return points

    def transform_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Moving world positions (..., 3) of fixed world positions (..., 3), in double precision."""
        points = np.asarray(points, dtype=np.float64)
        columns = torch.from_numpy(np.ascontiguousarray(points.reshape(-1, 3).T))
        return self.map_world(columns).numpy().T.reshape(points.shape)

    def displacement(self, grid: Grid) -> DisplacementField:
        """The true displacement at every voxel of a grid in fixed space."""
        data = torch.empty(1, 3, *grid.shape)
        for slab in slabs(grid.shape):
            world = voxel_mesh(grid.shape, grid.voxel_to_world, slab=slab)
            data[0, :, slab] = self.map_world(world) - world
        return DisplacementField(data, grid)

    def inverse_displacement(self, grid: Grid) -> DisplacementField:
        """The displacement back to fixed space at every voxel of a grid in moving space."""
        data = torch.empty(1, 3, *grid.shape)
        for slab in slabs(grid.shape):
            world = voxel_mesh(grid.shape, grid.voxel_to_world, slab=slab)
            data[0, :, slab] = self.unmap_world(world) - world
        return DisplacementField(data, grid)

    def slip_distance(self, grid: Grid) -> Tensor:
        """Distance in mm (z, y, x) of a fixed grid's voxels to the nearest sliding surface; infinite without one.

        Known to about a voxel. A surface that slides by less than a millimeter does not count.
        """
        surface = torch.zeros(grid.shape, dtype=torch.bool)
        points = voxel_mesh(grid.shape, grid.voxel_to_world)
        for step in self.steps:
            slip = step.slip(points)
            if slip is not None:
                surface |= _changes_sign(slip, SMALLEST_SLIP_MM)
            points = step.map_world(points)
        if not bool(surface.any()):
            return torch.full(grid.shape, torch.inf)
        mask = sitk.GetImageFromArray(surface.numpy().astype(np.uint8))
        mask.SetSpacing(grid.spacing)
        distance = sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=True)
        return torch.from_numpy(sitk.GetArrayFromImage(distance)).clamp(min=0)


def _changes_sign(slip: Tensor, smallest: float) -> Tensor:
    """Voxels (z, y, x) with a neighbor of the other sign, where the magnitude is at least `smallest`."""
    found = torch.zeros_like(slip, dtype=torch.bool)
    for dimension in range(3):
        count = slip.shape[dimension] - 1
        low, high = slip.narrow(dimension, 0, count), slip.narrow(dimension, 1, count)
        change = (low > 0) != (high > 0)
        found.narrow(dimension, 0, count).logical_or_(change)
        found.narrow(dimension, 1, count).logical_or_(change)
    return found & (slip.abs() >= smallest)


def deform(
    image: Image,
    deformation: Deformation,
    grid: Grid | None = None,
    interpolation: Interpolation = Interpolation.CUBIC,
) -> Image:
    """The moving volume of a fixed one: each of its voxels read where it came from, once.

    Args:
        image: the fixed volume, or its label map.
        deformation: from fixed to moving world.
        grid: where the moving volume is wanted; the fixed grid by default.
        interpolation: NEAREST for labels. CUBIC keeps noise and edges nearly as sharp as they were.

    Returns:
        The moving volume: background where nothing is known, never beyond the fixed volume's range of values.

    Raises:
        ValueError: if a step cannot be inverted.
    """
    inverse = deformation.inverse_displacement(grid or image.grid)
    moved = inverse.warp(image, interpolation, default=0.0 if interpolation is Interpolation.NEAREST else None)
    return moved.with_data(moved.data.clamp(float(image.data.min()), float(image.data.max())))
