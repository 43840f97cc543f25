"""What every feature extractor gives: unit vectors per voxel, and where these voxels are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..grid import Grid
from ..image import Image
from ..sampling import between_grids

JOINED_SCALE = 0.5**0.5
"""Of two unit vectors that are joined to one."""

_SLICES_AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A vector of unit length for every voxel of a grid, so that a dot product is a cosine similarity.

    Args:
        data: (1, C, z, y, x), float32 or half precision.
        grid: where the vectors belong, in LPS mm.

    Raises:
        ValueError: if the data's shape is not the grid's.
    """

    data: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.dim() != 5 or self.data.shape[0] != 1 or tuple(self.data.shape[2:]) != self.grid.shape:
            raise ValueError(f"features of shape {tuple(self.data.shape)} on a grid of shape {self.grid.shape}")

    @property
    def channels(self) -> int:
        return int(self.data.shape[1])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FeatureMap:
        """The same map on another device or in another precision."""
        return replace(self, data=self.data.to(device=device, dtype=dtype))


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one volume.

    Args:
        fine: local appearance, at high resolution.
        coarse: global anatomical context at a lower resolution, or None where the extractor has only one map.
            Both grids have the same axis directions.
    """

    fine: FeatureMap
    coarse: FeatureMap | None = None

    def joined(self) -> FeatureMap:
        """Both maps as one on the fine grid, whose dot product is the mean of both cosine similarities.

        The coarse map is interpolated linearly at the fine voxels, renormalized and concatenated; everything is
        scaled by 1/sqrt(2), which keeps unit length (SAM matching: SAME, section 2.1; SAMConvex, section 2.2). The
        result is in the memory format channels_last_3d.
        """
        if self.coarse is None:
            return self.fine
        channels = self.fine.channels + self.coarse.channels
        joined = self.fine.data.new_empty((1, *self.fine.grid.shape, channels))
        for part, vectors in self.joined_slabs():
            joined[0, part] = vectors
        return FeatureMap(joined.permute(0, 4, 1, 2, 3), self.fine.grid)

    def joined_slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """The vectors (z, y, x, C) of `joined`, some slices after the other, with the range of the slices."""
        fine = self.fine.data[0].permute(1, 2, 3, 0)
        if self.coarse is None:
            for first in range(0, len(fine), _SLICES_AT_ONCE):
                yield slice(first, first + _SLICES_AT_ONCE), fine[first : first + _SLICES_AT_ONCE]
            return
        for part, coarse in self.coarse_on_fine():
            yield part, torch.cat((fine[part] * JOINED_SCALE, scaled_to_join(coarse).to(fine.dtype)), dim=-1)

    def coarse_on_fine(self) -> Iterator[tuple[slice, Tensor]]:
        """The coarse vectors (z, y, x, C) at the fine voxels, float32, not of unit length; as `joined_slabs`."""
        if self.coarse is None:
            return
        coarse = self.coarse.data
        along_z, along_y, along_x = _interpolation_matrices(self.fine.grid, self.coarse.grid, coarse.device)
        # The channels of a voxel side by side; along y and x, where it becomes large, a few slices at a time.
        rows = coarse[0].permute(1, 2, 3, 0).float().contiguous()
        planes = (along_z @ rows.flatten(1)).view(-1, rows.shape[1], rows[0, 0].numel())
        for first in range(0, len(planes), _SLICES_AT_ONCE):
            part = slice(first, first + _SLICES_AT_ONCE)
            yield part, along_x @ (along_y @ planes[part]).unflatten(2, rows.shape[2:])


class FeatureExtractor(Protocol):
    """Turns a volume into features; extractors are interchangeable.

    Attributes:
        name: "mind" or the name of a model in the catalogue.
        spacing: the isotropic working spacing in mm, or None if the extractor works at any.
    """

    @property
    def name(self) -> str: ...

    @property
    def spacing(self) -> float | None: ...

    def extract(self, image: Image) -> Features:
        """The features of a volume of any orientation and spacing, with the grids they lie on."""
        ...

    def extract_tensor(self, volume: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fine and coarse unit vectors of a volume that is sampled as the extractor wants it.

        Args:
            volume: (1, 1, z, y, x), axes along L, P, S, at working spacing or a pyramid level of it; HU for CT.

        Returns:
            (1, C, z', y', x') maps that divide the volume's box evenly: a map of stride s has its voxel i at the
            volume's voxel s * i + (s - 1) / 2 (`align_corners=False`). The coarse map may be None. The last
            voxels may reach beyond a volume whose size is not a multiple of the stride.
        """
        ...

    def suits(self, image: Image) -> bool:
        """Whether the features were made for volumes of this modality."""
        ...

    def feature_grids(self, grid: Grid) -> tuple[Grid, Grid | None]:
        """Where the maps of `extract_tensor` lie for a volume on `grid`."""
        ...


def scaled_to_join(vectors: Tensor) -> Tensor:
    """Vectors (..., C) in float32, scaled in place to the length that a half of a joined vector has."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=1e-6)
    return vectors.mul_(JOINED_SCALE / length)


def divided(grid: Grid, stride: tuple[int, int, int]) -> Grid:
    """The grid of cells of `stride` (z, y, x) voxels, each at the middle of its voxels.

    Where a size is not a multiple of the stride, the last cell reaches beyond the grid.
    """
    steps = np.asarray(stride[::-1])
    size = -(-np.asarray(grid.size) // steps)
    origin = grid.to_world((steps - 1) / 2)
    spacing = np.asarray(grid.spacing) * steps
    return Grid(tuple(size), tuple(spacing), tuple(origin), grid.direction)


def _interpolation_matrices(target: Grid, source: Grid, device: torch.device) -> list[Tensor]:
    """For z, y and x the matrix (target size, source size) that interpolates linearly and holds edge values."""
    between = between_grids(target, source)
    matrices = []
    for axis in (2, 1, 0):
        index = torch.arange(target.size[axis], dtype=torch.float64)
        position = (index * between[axis, axis] + between[axis, 3]).clamp(0, source.size[axis] - 1)
        distance = (position[:, None] - torch.arange(source.size[axis], dtype=torch.float64)).abs()
        matrices.append((1 - distance).clamp(min=0).float().to(device))
    return matrices
