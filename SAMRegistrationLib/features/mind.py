"""MIND-SSC: the modality-independent neighborhood descriptor with self-similarity context.

Heinrich et al., MICCAI 2013. It needs no training and compares any two modalities, since each voxel is
described by how alike the patches around it are, not by their grey values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from ..grid import Grid
from ..image import Image
from ..memory_reuse import give_back_much
from .base import FeatureMap, Features, divided

CHANNELS = 12
_TILE = 16
"""Voxels along z and y that are worked on at once: so few rows of any volume stay in a processor's cache."""
# Patch centers lie on the six face neighbors (x, y, z); the twelve pairs are those that are not opposite.
_NEIGHBORS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
_PAIRS = tuple(
    (first, second)
    for first in range(6)
    for second in range(first + 1, 6)
    if sum(a * b for a, b in zip(_NEIGHBORS[first], _NEIGHBORS[second], strict=True)) == 0
)


def mind_ssc(volume: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """The twelve self-similarities of every voxel.

    Args:
        volume: (1, 1, z, y, x), any unit.
        radius: half width of the cubic patches that are compared, in voxels.
        dilation: distance of the patches from the voxel, in voxels.

    Returns:
        (1, 12, z, y, x) float32 in (0, 1]; 1 in the direction of greatest similarity.
    """
    volume = volume.float()
    margin = dilation + radius
    padded = functional.pad(volume, [margin] * 6, mode="replicate")
    distances = volume.new_empty((1, CHANNELS, *volume.shape[2:]))
    tiles = list(_tiles(volume))
    for z, y in tiles:
        part = padded[:, :, z.start : z.stop + 2 * margin, y.start : y.stop + 2 * margin]
        distances[:, :, z, y] = _distances(part, radius, dilation)
    variance = distances.mean(dim=1, keepdim=True)
    # Far too small or large local noise estimates would make the descriptor all ones or all zeros.
    typical = variance.mean()
    variance = torch.minimum(torch.maximum(variance, typical * 1e-3), typical * 1e3).clamp_(min=1e-12).neg_()
    for z, y in tiles:
        distances[:, :, z, y] = (distances[:, :, z, y] / variance[:, :, z, y]).exp_()
    return distances


def _tiles(volume: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of z and y that cover a volume (1, 1, z, y, x): all of it where there is no cache to think of."""
    depth, height = volume.shape[2:4]
    side = _TILE if volume.device.type == "cpu" else max(depth, height)
    for z, y in product(range(0, depth, side), range(0, height, side)):
        yield slice(z, min(z + side, depth)), slice(y, min(y + side, height))


def _distances(padded: Tensor, radius: int, dilation: int) -> Tensor:
    """Mean squared differences (1, 12, z, y, x) of pairs of patches, less the smallest of every voxel.

    Args:
        padded: (1, 1, z + 2 m, y + 2 m, x + 2 m), with m = radius + dilation voxels around.
        radius: of the patches.
        dilation: their distance.
    """
    # Shifted copies still carry the margin that the patch sums need.
    sizes = [n - 2 * dilation for n in padded.shape[2:]]
    shifted = [
        padded[
            ...,
            dilation + z * dilation : dilation + z * dilation + sizes[0],
            dilation + y * dilation : dilation + y * dilation + sizes[1],
            dilation + x * dilation : dilation + x * dilation + sizes[2],
        ]
        for x, y, z in _NEIGHBORS
    ]
    distances = torch.cat([_patch_mean((shifted[a] - shifted[b]).square_(), radius) for a, b in _PAIRS], dim=1)
    return distances.sub_(distances.amin(dim=1, keepdim=True))


def _patch_mean(volume: Tensor, radius: int) -> Tensor:
    width = 2 * radius + 1
    for dimension in (2, 3, 4):
        length = volume.shape[dimension] - 2 * radius
        total = volume.narrow(dimension, 0, length).clone()
        for offset in range(1, width):
            total += volume.narrow(dimension, offset, length)
        volume = total
    return volume.div_(width**3)


class MindExtractor:
    """MIND-SSC features of a volume at an isotropic spacing, averaged over blocks of `stride` voxels.

    Args:
        spacing: voxel size in mm at which the descriptor is computed.
        stride: side of the blocks that are averaged.
        radius: patch radius in voxels.
        dilation: patch distance in voxels.
        device: where to compute.
    """

    def __init__(
        self,
        spacing: float = 2.0,
        stride: int = 2,
        radius: int = 1,
        dilation: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = "mind"
        self.spacing = spacing
        self.stride = stride
        self.radius = radius
        self.dilation = dilation
        self.device = torch.device(device)

    def extract(self, image: Image) -> Features:
        """Unit vectors on a grid of `spacing * stride` mm that covers the volume."""
        image = image.to(self.device).canonical()
        resampled = image.resampled(image.grid.resampled(self.spacing), default=float(image.data.min()))
        fine, _ = self.extract_tensor(resampled.tensor())
        return Features(FeatureMap(fine, self.feature_grids(resampled.grid)[0]), None)

    def suits(self, image: Image) -> bool:
        """MIND compares volumes of any modality."""
        return bool(image.data.numel())

    def feature_grids(self, grid: Grid) -> tuple[Grid, None]:
        """Where the map of `extract_tensor` lies for a volume on `grid`; there is no coarse one."""
        return divided(grid, (self.stride,) * 3), None

    def extract_tensor(self, volume: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unit vectors of a volume (1, 1, z, y, x) at its own spacing; there is no coarse map."""
        vectors = self._vectors(volume)
        give_back_much()
        return vectors, None

    def _vectors(self, volume: Tensor) -> Tensor:
        descriptor = mind_ssc(volume.to(self.device), self.radius, self.dilation)
        if self.stride > 1:
            descriptor = _pool(descriptor, self.stride)
        # A sum over channels is several times as fast as torch's norm where they lie far apart.
        return descriptor * descriptor.square().sum(dim=1, keepdim=True).clamp_(min=1e-24).rsqrt_()


def _pool(volume: Tensor, stride: int) -> Tensor:
    missing = [-n % stride for n in volume.shape[2:]]
    if any(missing):
        volume = functional.pad(volume, [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")
    return functional.avg_pool3d(volume, stride)
