"""A scalar volume with its geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from .grid import Grid
from .sampling import Interpolation, between_grids, sample, voxel_mesh

AIR = -1024.0


@dataclass(frozen=True, eq=False)
class Image:
    """A volume: values (z, y, x) as float32 on a grid in LPS mm.

    Args:
        data: (z, y, x) float32 tensor; HU for CT, labels as whole numbers for label maps.
        grid: its geometry.
        pixel_type: numpy name of the type that the volume is stored with, such as "int16".
        modality: "CT", "MR" or None where it is not known.

    Raises:
        ValueError: if the data's shape is not the grid's.
    """

    data: Tensor
    grid: Grid
    pixel_type: str = "float32"
    modality: str | None = None

    def __post_init__(self) -> None:
        if tuple(self.data.shape) != self.grid.shape:
            raise ValueError(f"data of shape {tuple(self.data.shape)} on a grid of shape {self.grid.shape}")

    @classmethod
    def from_sitk(cls, image: sitk.Image, modality: str | None = None) -> Image:
        """A copy of a 3D scalar SimpleITK image."""
        array = sitk.GetArrayFromImage(image)
        data = torch.from_numpy(array.astype(np.float32))
        return cls(data, Grid.from_sitk(image), array.dtype.name, modality)

    def to_sitk(self, pixel_type: str | None = None) -> sitk.Image:
        """The volume as a SimpleITK image of the given numpy type (its own by default), rounded and clipped."""
        values = self.data.detach().cpu().numpy()
        dtype = np.dtype(pixel_type or self.pixel_type)
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        image = sitk.GetImageFromArray(values.astype(dtype))
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return image

    @property
    def is_ct(self) -> bool:
        return self.modality in ("CT", "CBCT")

    @property
    def background(self) -> float:
        """The value of nothing: air for CT, else the smallest value."""
        return AIR if self.is_ct else float(self.data.min())

    def tensor(self, device: torch.device | str | None = None) -> Tensor:
        """The values as (1, 1, z, y, x)."""
        return self.data[None, None].to(device or self.data.device)

    def to(self, device: torch.device | str) -> Image:
        """The same volume on another device."""
        return replace(self, data=self.data.to(device))

    def with_data(self, data: Tensor) -> Image:
        """Other values (z, y, x) on the same grid."""
        return replace(self, data=data)

    def canonical(self) -> Image:
        """The same volume with stored axes flipped and permuted to lie closest to L, P, S.

        Volumes that differ only in how they are stored become equal, voxel by voxel.
        """
        axes = self.grid.axes
        order = _closest_axes(axes)
        flips = [bool(axes[world, order[world]] < 0) for world in range(3)]
        # Tensor dimension of grid axis a is 2 - a.
        data = self.data.permute([2 - order[world] for world in (2, 1, 0)])
        data = data.flip([2 - world for world in range(3) if flips[world]])
        first = [self.grid.size[order[w]] - 1 if flips[w] else 0 for w in range(3)]
        corner = np.empty(3)
        for world in range(3):
            corner[order[world]] = first[world]
        direction = np.stack([axes[:, order[w]] * (-1 if flips[w] else 1) for w in range(3)], axis=1)
        grid = Grid(
            tuple(self.grid.size[a] for a in order),
            tuple(self.grid.spacing[a] for a in order),
            tuple(self.grid.to_world(corner)),
            tuple(direction.ravel()),
        )
        return replace(self, data=data.contiguous(), grid=grid)

    def resampled(
        self,
        grid: Grid,
        interpolation: Interpolation = Interpolation.LINEAR,
        default: float | None = None,
    ) -> Image:
        """The volume on another grid; `default` (the background) outside.

        Where the new grid is coarser, linear and cubic interpolation smooth first, so that nothing is aliased.
        """
        fill = self.background if default is None else default
        if interpolation is Interpolation.CUBIC:
            source = self._antialiased(grid)
            resampled = sitk.Resample(
                source.to_sitk("float32"), _reference(grid), sitk.Transform(), sitk.sitkBSpline, fill
            )
            values = torch.from_numpy(sitk.GetArrayFromImage(resampled)).to(self.data.device)
            return replace(self, data=values, grid=grid)
        source = self._antialiased(grid) if interpolation is Interpolation.LINEAR else self
        mesh = voxel_mesh(grid.shape, between_grids(grid, self.grid), self.data.device)
        values = sample(source.tensor(), mesh, interpolation, fill=fill)
        return replace(self, data=values[0, 0], grid=grid)

    def _antialiased(self, grid: Grid) -> Image:
        # Spacing of the new grid along each own axis, then the Gaussian that turns one resolution into the other.
        along = np.abs(self.grid.axes.T @ grid.axes) @ np.asarray(grid.spacing)
        ratio = along / np.asarray(self.grid.spacing)
        sigmas = 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
        data = self.tensor()
        for axis, sigma in enumerate(sigmas):
            if sigma > 0.2:
                data = _gaussian_along(data, 4 - axis, float(sigma))
        return self.with_data(data[0, 0])


def _closest_axes(axes: np.ndarray) -> list[int]:
    """For each world axis, the grid axis that lies closest to it, each used once, the clearest case first."""
    remaining = np.abs(axes).copy()
    order = [0, 0, 0]
    for _ in range(3):
        world, own = np.unravel_index(np.argmax(remaining), remaining.shape)
        order[int(world)] = int(own)
        remaining[world, :] = -1
        remaining[:, own] = -1
    return order


def _gaussian_along(volume: Tensor, dimension: int, sigma: float) -> Tensor:
    radius = max(1, int(np.ceil(3 * sigma)))
    offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype, device=volume.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    shape = [1, 1, 1, 1, 1]
    shape[dimension] = -1
    padding = [0] * 6
    side = (4 - dimension) * 2
    padding[side] = padding[side + 1] = radius
    padded = functional.pad(volume, padding, mode="replicate")
    return functional.conv3d(padded, (kernel / kernel.sum()).view(shape))


def _reference(grid: Grid) -> sitk.Image:
    """An image of the grid's geometry for SimpleITK's resampling."""
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image
