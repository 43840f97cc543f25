"""Dense displacement fields in LPS millimeters: warp, compose, invert, integrate, measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .grid import Grid
from .image import Image
from .resampling import resample
from .sampling import (
    Interpolation,
    Outside,
    affine_map,
    between_grids,
    linear_map,
    sample,
    sample_mapped,
    sample_points,
    slabs,
    voxel_mesh,
)
from .transforms import CompositeTransform, FloatArray, ItkTransform, Transform, transform_points

POINTS_AT_ONCE_IN_DOUBLE = 2_000_000
SMALLEST_RELAXATION = 1 / 64


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
        return cls(linear_map(grid.voxel_to_world[:3, :3], displacement[0].float())[None], grid)

    def to_voxels(self) -> Tensor:
        """The displacement in voxels along the grid's own axes, (1, 3, z, y, x) in the order x, y, z."""
        return linear_map(self.grid.world_to_voxel[:3, :3], self.data[0])[None]

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> DisplacementField:
        """From a 3-component SimpleITK image in LPS mm."""
        array = sitk.GetArrayViewFromImage(image).transpose(3, 0, 1, 2).astype(np.float32, order="C")
        return cls(torch.from_numpy(array)[None], Grid.from_sitk(image))

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
        voxel = affine_map(self.grid.world_to_voxel, world)
        if world.dim() == 4 and world.dtype == torch.float32:
            return sample(self.data, voxel, outside=outside)[0]
        chunks = voxel.reshape(3, -1).T.split(POINTS_AT_ONCE_IN_DOUBLE)
        return torch.cat([sample_points(self.data, chunk, outside) for chunk in chunks]).T.reshape(world.shape)

    def resampled(self, grid: Grid, outside: Outside = Outside.EDGE) -> DisplacementField:
        """The field on another grid, linearly interpolated; by default the edge's value outside."""
        return DisplacementField(resample(self.data, self.grid, grid, outside=outside), grid)

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
            values = torch.from_numpy(sitk.GetArrayFromImage(warped)).to(self.data.device)
        else:
            source = moving.tensor(self.data.device)
            shape, positions = self._positions_in(moving.grid)
            values = sample_mapped(source, shape, positions, interpolation, fill=fill)[0, 0]
        return Image(values, self.grid, moving.pixel_type, moving.modality)

    def _positions_in(self, grid: Grid) -> tuple[tuple[int, int, int], Callable[[slice], Tensor]]:
        """Shape of the own grid and, for a range of its z, where x + u(x) lies in voxels of another grid."""
        identity = between_grids(self.grid, grid)
        to_voxels = grid.world_to_voxel[:3, :3]

        def positions(slab: slice) -> Tensor:
            mesh = voxel_mesh(self.grid.shape, identity, self.data.device, slab)
            return mesh.add_(linear_map(to_voxels, self.data[0, :, slab]))

        return self.grid.shape, positions

    def compose(self, first: DisplacementField, outside: Outside = Outside.EDGE) -> DisplacementField:
        """The map that applies `first`, then this one, on the grid of `first`.

        Where `first` leads outside this field's grid, `outside` tells whether the edge's displacement continues
        (the default, which keeps the map smooth) or there is none (as in ITK).
        """
        shape, positions = first._positions_in(self.grid)
        return DisplacementField(
            sample_mapped(self.data, shape, positions, outside=outside).add_(first.data), first.grid
        )

    def integrated(self, squarings: int = 5) -> DisplacementField:
        """The field taken as a stationary velocity v and integrated over unit time by scaling and squaring.

        The flow over 2^-squarings starts from a midpoint step, v(x + v(x) h / 2) h, whose error vanishes one order
        faster than that of the usual v(x) h; so five squarings suffice. What remains is the linear interpolation
        of the flow between voxels (hundredths of a voxel for a field that is smooth over ten voxels).
        """
        step = DisplacementField(self.data / 2**squarings, self.grid)
        half = DisplacementField(step.data / 2, self.grid)
        flow = DisplacementField(step.compose(half).data.sub_(half.data), self.grid)
        for _ in range(squarings):
            flow = flow.compose(flow)
        return flow

    def inverse(
        self,
        grid: Grid | None = None,
        iterations: int = 50,
        tolerance: float = 1e-2,
        first: Transform | None = None,
    ) -> tuple[DisplacementField, float]:
        """The inverse map by the fixed-point iteration v(y) = -u(y + v(y)) (Chen et al., Med. Phys. 35, 2008).

        Where it overshoots, because the map stretches space more than twice, the step is halved.

        Args:
            grid: where the inverse is wanted; the field's own grid by default.
            iterations: at most so many steps.
            tolerance: stop when the largest residual is below, in mm.
            first: a map to apply before the inverse, such as that of a linear part that followed the field.

        Returns:
            The inverse (after `first`), and its largest residual |v(y) + u(y + v(y))| in mm over the points that
            stay inside the field's grid; large residuals mean folds or a field that moves faster than it can be
            followed.
        """
        grid = grid or self.grid
        inverse = self.data.new_empty(1, 3, *grid.shape)
        residual = 0.0
        for slab in slabs(grid.shape, self.data.device):
            identity = voxel_mesh(grid.shape, grid.voxel_to_world, self.data.device, slab)
            start = identity if first is None else first.map_world(identity)
            found, remaining = self.inverse_at(start, iterations, tolerance)
            inverse[0, :, slab] = found if first is None else found + (start - identity)
            residual = max(residual, remaining)
        return DisplacementField(inverse, grid), residual

    def inverse_at(self, identity: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, float]:
        """The inverse displacement at world positions (3, z, y, x), and its largest residual; see `inverse`."""
        inverse = torch.zeros_like(identity)
        error, squared, largest = self._inversion_error(identity, inverse)
        relaxation = torch.ones_like(squared)
        for _ in range(iterations):
            if largest < tolerance:
                break
            inverse.addcmul_(error, relaxation, value=-1)
            previous, previous_squared = error, squared
            error, squared, largest = self._inversion_error(identity, inverse)
            overshot = ((error * previous).sum(dim=0) < 0) & (squared > previous_squared / 2)
            relaxation = torch.where(overshot, relaxation / 2, relaxation).clamp_(min=SMALLEST_RELAXATION)
        return inverse, largest

    def _inversion_error(self, identity: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, float]:
        """v(y) + u(y + v(y)) in mm, its squared length, and its largest length where y + v(y) is in the grid."""
        voxel = affine_map(self.grid.world_to_voxel, identity + inverse)
        error = sample(self.data, voxel, outside=Outside.EDGE)[0].add_(inverse)
        squared = error[0].square().addcmul_(error[1], error[1]).addcmul_(error[2], error[2])
        last = torch.tensor(self.grid.size, device=voxel.device).view(3, 1, 1, 1) - 1
        beyond = ((voxel < 0) | (voxel > last)).any(dim=0)
        return error, squared, float(squared.masked_fill(beyond, 0).max().sqrt())

    def jacobian_determinant(self) -> Tensor:
        """Determinant of d(x + u)/dx as (1, 1, z, y, x): central differences, one-sided at the border."""
        depth = self.grid.shape[0]
        determinant = self.data.new_empty(1, 1, *self.grid.shape)
        for slab in slabs(self.grid.shape, self.data.device):
            around = slice(max(slab.start - 1, 0), min(slab.stop + 1, depth))
            u = linear_map(self.grid.world_to_voxel[:3, :3], self.data[0, :, around])
            inner = slice(slab.start - around.start, slab.stop - around.start)
            determinant[0, 0, slab] = _determinant_of_identity_plus(u)[inner]
        return determinant


def displacement_on(transform: Transform, grid: Grid, device: torch.device | str = "cpu") -> DisplacementField:
    """Any transform as a dense displacement field on a grid."""
    if isinstance(transform, ItkTransform):
        converter = sitk.TransformToDisplacementFieldFilter()
        converter.SetSize(grid.size)
        converter.SetOutputSpacing(grid.spacing)
        converter.SetOutputOrigin(grid.origin)
        converter.SetOutputDirection(grid.direction)
        return DisplacementField.from_sitk(converter.Execute(transform.transform)).to(device)
    if isinstance(transform, CompositeTransform) and any(
        isinstance(t, ItkTransform) for t in transform.transforms
    ):
        return displacement_on(ItkTransform(transform.to_sitk()), grid, device)
    data = torch.empty(1, 3, *grid.shape, device=device)
    for slab in slabs(grid.shape, device):
        world = voxel_mesh(grid.shape, grid.voxel_to_world, device, slab)
        data[0, :, slab] = transform.map_world(world).sub_(world)
    return DisplacementField(data, grid)


def _determinant_of_identity_plus(u: Tensor) -> Tensor:
    """det(I + du/dx) as (z, y, x) of a displacement in voxels (3, z, y, x)."""
    rows = []
    for component in range(3):
        gradient = [_difference(u[component], 2 - axis) for axis in range(3)]
        gradient[component] += 1
        rows.append(gradient)
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _difference(volume: Tensor, dimension: int) -> Tensor:
    if volume.shape[dimension] == 1:
        return torch.zeros_like(volume)
    return torch.gradient(volume, dim=dimension)[0]
