"""Dense displacement fields in LPS millimeters: warp, compose, invert, integrate, measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .grid import Grid
from .image import Image
from .sampling import Interpolation, Outside, between_grids, sample, sample_points, voxel_mesh
from .transforms import AffineTransform, CompositeTransform, FloatArray, ItkTransform, Transform, transform_points

POINTS_AT_ONCE_IN_DOUBLE = 2_000_000


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """The map x -> x + u(x) from fixed world to moving world, u given on a grid.

    Outside its grid the displacement is zero, as in ITK.

    Args:
        data: u in mm as (1, 3, z, y, x) float32, components along world x, y, z (LPS).
        grid: where u is given.

    Raises:
        ValueError: if the data's shape does not fit the grid.
    """

    data: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.data.shape) != (1, 3, *self.grid.shape):
            raise ValueError(f"a field of shape {tuple(self.data.shape)} on a grid of shape {self.grid.shape}")

    @classmethod
    def zero(cls, grid: Grid, device: torch.device | str = "cpu") -> DisplacementField:
        """No displacement anywhere."""
        return cls(torch.zeros(1, 3, *grid.shape, device=device), grid)

    @classmethod
    def from_voxels(cls, displacement: Tensor, grid: Grid) -> DisplacementField:
        """From a displacement in voxels along the grid's own axes, (1, 3, z, y, x) in the order x, y, z."""
        return cls(_linear_map(grid.voxel_to_world[:3, :3], displacement.float()), grid)

    def to_voxels(self) -> Tensor:
        """The displacement in voxels along the grid's own axes, (1, 3, z, y, x) in the order x, y, z."""
        return _linear_map(self.grid.world_to_voxel[:3, :3], self.data)

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> DisplacementField:
        """From a 3-component SimpleITK image in LPS mm."""
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        return cls(torch.from_numpy(array).permute(3, 0, 1, 2)[None].contiguous(), Grid.from_sitk(image))

    def to_image(self) -> sitk.Image:
        """As a 3-component float32 SimpleITK image in LPS mm."""
        image = sitk.GetImageFromArray(self.data[0].permute(1, 2, 3, 0).cpu().numpy(), isVector=True)
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return image

    def to_sitk(self) -> sitk.Transform:
        return sitk.DisplacementFieldTransform(sitk.Cast(self.to_image(), sitk.sitkVectorFloat64))

    def map_world(self, points: Tensor) -> Tensor:
        return points + self._displacement_at(points, Outside.CONSTANT)

    def transform_points(self, points: ArrayLike) -> FloatArray:
        """Moving world positions (..., 3) of fixed world positions (..., 3)."""
        return transform_points(self, points)

    def _displacement_at(self, world: Tensor, outside: Outside) -> Tensor:
        """Displacement in mm (3, ...) at world positions (3, ...)."""
        voxel = AffineTransform(self.grid.world_to_voxel).map_world(world)
        if world.dim() == 4 and world.dtype == torch.float32:
            return sample(self.data, voxel, outside=outside)[0]
        chunks = voxel.reshape(3, -1).T.split(POINTS_AT_ONCE_IN_DOUBLE)
        return torch.cat([sample_points(self.data, chunk, outside) for chunk in chunks]).T.reshape(world.shape)

    def resampled(self, grid: Grid, outside: Outside = Outside.EDGE) -> DisplacementField:
        """The field on another grid, linearly interpolated; by default the edge's value outside."""
        mesh = voxel_mesh(grid.shape, between_grids(grid, self.grid), self.data.device)
        return DisplacementField(sample(self.data, mesh, outside=outside), grid)

    def to(self, device: torch.device | str) -> DisplacementField:
        """The same field on another device."""
        return DisplacementField(self.data.to(device), self.grid)

    def warp(
        self,
        moving: Image,
        interpolation: Interpolation = Interpolation.LINEAR,
        default: float | None = None,
    ) -> Image:
        """The moving volume read at x + u(x) for every voxel of the field's grid; its background outside.

        NEAREST suits labels, LINEAR and CUBIC suit images.
        """
        fill = moving.background if default is None else default
        if interpolation is Interpolation.CUBIC:
            warped = sitk.Resample(
                moving.to_sitk("float32"), self.to_image(), self.to_sitk(), sitk.sitkBSpline, fill
            )
            values = torch.from_numpy(sitk.GetArrayFromImage(warped)).to(moving.data.device)
        else:
            voxel = _linear_map(moving.grid.world_to_voxel[:3, :3], self.data)[0]
            voxel += voxel_mesh(self.grid.shape, between_grids(self.grid, moving.grid), self.data.device)
            source = moving.tensor(self.data.device)
            values = sample(source, voxel, interpolation, fill=fill)[0, 0]
        return Image(values, self.grid, moving.pixel_type, moving.modality)

    def compose(self, first: DisplacementField, outside: Outside = Outside.EDGE) -> DisplacementField:
        """The map that applies `first`, then this one, on the grid of `first`."""
        world = first.data[0] + voxel_mesh(first.grid.shape, first.grid.voxel_to_world, first.data.device)
        return DisplacementField(first.data + self._displacement_at(world, outside)[None], first.grid)

    def integrated(self, squarings: int = 7) -> DisplacementField:
        """The field taken as a stationary velocity and integrated over unit time by scaling and squaring."""
        flow = DisplacementField(self.data / 2**squarings, self.grid)
        for _ in range(squarings):
            flow = flow.compose(flow)
        return flow

    def inverse(
        self, grid: Grid | None = None, iterations: int = 50, tolerance: float = 1e-2
    ) -> tuple[DisplacementField, float]:
        """The inverse map by fixed-point iteration v(y) = -u(y + v(y)).

        Args:
            grid: where the inverse is wanted; the field's own grid by default.
            iterations: at most so many steps.
            tolerance: stop when the largest residual is below, in mm.

        Returns:
            The inverse, and its largest residual |v(y) + u(y + v(y))| in mm over the points that stay inside
            the field's grid; large residuals mean folds or a field that moves faster than it can be followed.
        """
        grid = grid or self.grid
        identity = voxel_mesh(grid.shape, grid.voxel_to_world, self.data.device)
        inverse = torch.zeros_like(identity)
        residual = float("inf")
        for _ in range(iterations):
            position = identity + inverse
            update = -self._displacement_at(position, Outside.EDGE) - inverse
            inside = self._inside(position)
            residual = float(update.norm(dim=0)[inside].max()) if bool(inside.any()) else 0.0
            if residual < tolerance:
                break
            inverse += update
        return DisplacementField(inverse[None], grid), residual

    def _inside(self, world: Tensor) -> Tensor:
        voxel = AffineTransform(self.grid.world_to_voxel).map_world(world)
        last = torch.tensor(self.grid.size, device=voxel.device).view(3, 1, 1, 1) - 1
        return ((voxel >= 0) & (voxel <= last)).all(dim=0)

    def jacobian_determinant(self) -> Tensor:
        """Determinant of d(x + u)/dx as (1, 1, z, y, x): central differences, one-sided at the border."""
        u = self.to_voxels()[0]
        rows = []
        for component in range(3):
            gradient = [_difference(u[component], 2 - axis) for axis in range(3)]
            gradient[component] = gradient[component] + 1
            rows.append(gradient)
        (a, b, c), (d, e, f), (g, h, i) = rows
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        return determinant[None, None]


def displacement_on(transform: Transform, grid: Grid, device: torch.device | str = "cpu") -> DisplacementField:
    """Any transform as a dense displacement field on a grid."""
    if isinstance(transform, ItkTransform):
        converter = sitk.TransformToDisplacementFieldFilter()
        converter.SetSize(grid.size)
        converter.SetOutputSpacing(grid.spacing)
        converter.SetOutputOrigin(grid.origin)
        converter.SetOutputDirection(grid.direction)
        return DisplacementField.from_sitk(converter.Execute(transform.transform)).to(device)
    world = voxel_mesh(grid.shape, grid.voxel_to_world, device)
    if isinstance(transform, CompositeTransform) and any(
        isinstance(t, ItkTransform) for t in transform.transforms
    ):
        return displacement_on(ItkTransform(transform.to_sitk()), grid, device)
    return DisplacementField((transform.map_world(world) - world)[None], grid)


def _linear_map(matrix: np.ndarray, vectors: Tensor) -> Tensor:
    """A 3x3 matrix applied to vectors (1, 3, z, y, x)."""
    weights = torch.as_tensor(matrix, dtype=vectors.dtype, device=vectors.device)
    return torch.matmul(weights, vectors.flatten(2)).view_as(vectors)


def _difference(volume: Tensor, dimension: int) -> Tensor:
    if volume.shape[dimension] == 1:
        return torch.zeros_like(volume)
    return torch.gradient(volume, dim=dimension)[0]
