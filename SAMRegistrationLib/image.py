"""A scalar volume with its geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .grid import Grid
from .resampling import antialiasing_sigmas, resample, smooth
from .sampling import Interpolation

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
        array = sitk.GetArrayViewFromImage(image)
        data = torch.from_numpy(array.astype(np.float32))
        return cls(data, Grid.from_sitk(image), array.dtype.name, modality)

    def to_sitk(self, pixel_type: str | None = None) -> sitk.Image:
        """The volume as a SimpleITK image of the given numpy type (its own by default), rounded and clipped."""
        values = self.data.detach().cpu().numpy()
        dtype = np.dtype(pixel_type or self.pixel_type)
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        image = sitk.GetImageFromArray(values.astype(dtype, copy=False))
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
        order, flips = _closest_to_world(self.grid.axes)
        # Tensor dimension of grid axis a is 2 - a.
        data = self.data.permute([2 - order[world] for world in (2, 1, 0)])
        data = data.flip([2 - world for world in range(3) if flips[world]])
        grid = self.grid.reordered(order, flips)
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
            return self._resampled_cubic(grid, fill)
        antialias = interpolation is Interpolation.LINEAR
        values = resample(self.tensor(), self.grid, grid, interpolation, fill=fill, antialias=antialias)
        return replace(self, data=values[0, 0], grid=grid)

    def _resampled_cubic(self, grid: Grid, fill: float) -> Image:
        smoothed = self.with_data(smooth(self.tensor(), antialiasing_sigmas(self.grid, grid))[0, 0])
        resampled = sitk.Resample(
            smoothed.to_sitk("float32"), reference_image(grid), sitk.Transform(), sitk.sitkBSpline, fill
        )
        values = torch.from_numpy(sitk.GetArrayFromImage(resampled)).to(self.data.device)
        return replace(self, data=values, grid=grid)


def _closest_to_world(axes: np.ndarray) -> tuple[list[int], list[bool]]:
    """For each world axis, the grid axis to store along it and whether to flip that one.

    Of the 48 ways to store a volume, the one whose directions have the largest trace. Ties (a volume turned by
    exactly 45 degrees) are broken by the directions themselves, so that the choice does not depend on how the
    volume happens to be stored.
    """
    best: tuple[float, ...] = ()
    chosen: tuple[list[int], list[bool]] = ([0, 1, 2], [False] * 3)
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            direction = axes[:, order] * np.where(flips, -1.0, 1.0)
            rank = tuple(np.round([np.trace(direction), *direction.ravel()], 6))
            if rank > best:
                best, chosen = rank, (list(order), list(flips))
    return chosen


def reference_image(grid: Grid) -> sitk.Image:
    """An image of the grid's geometry for SimpleITK's resampling."""
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image
