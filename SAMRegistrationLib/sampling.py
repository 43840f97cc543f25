"""Reading values of a volume at arbitrary voxel positions, with ITK's rules at the border.

A position belongs to the volume up to half a voxel beyond the outermost centers; there the edge value holds.
Dense meshes are worked on in slabs along z, so that the positions of a whole volume never exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .grid import Grid

POSITIONS_AT_ONCE = 2**19
POSITIONS_AT_ONCE_ON_GPU = 2**24
CHANNELS_AT_ONCE_FROM_HALF = 16


class Interpolation(Enum):
    """How values between voxel centers are read."""

    NEAREST = "nearest"
    LINEAR = "linear"
    CUBIC = "cubic"


class Outside(Enum):
    """What holds outside a volume: a constant, or the nearest value of the edge."""

    CONSTANT = "constant"
    EDGE = "edge"


def between_grids(target: Grid, source: Grid) -> np.ndarray:
    """4x4 matrix from voxel coordinates of `target` to voxel coordinates of `source` at the same world place."""
    return source.world_to_voxel @ target.voxel_to_world


def slabs(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Iterator[slice]:
    """Consecutive ranges of z that cover a (z, y, x) shape, each small enough to be worked on at once."""
    at_once = POSITIONS_AT_ONCE if torch.device(device).type == "cpu" else POSITIONS_AT_ONCE_ON_GPU
    thickness = max(1, at_once // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        yield slice(start, min(start + thickness, shape[0]))


def voxel_mesh(
    shape: tuple[int, ...], matrix: np.ndarray, device: torch.device | str = "cpu", slab: slice | None = None
) -> Tensor:
    """The images of all voxel coordinates of a (z, y, x) shape under a 4x4 matrix: (3, z, y, x), float32.

    Built from the three axes, so that no mesh of the identity is stored; `slab` keeps that range of z only.
    """
    z, y, x = (torch.arange(n, dtype=torch.float64, device=device) for n in shape)
    if slab is not None:
        z = z[slab]
    mesh = torch.empty(3, len(z), len(y), len(x), dtype=torch.float32, device=device)
    for row, (along_x, along_y, along_z, offset) in enumerate(np.asarray(matrix)[:3].tolist()):
        zy = (along_z * z + offset)[:, None] + (along_y * y)[None, :]
        torch.add(zy[:, :, None].float(), (along_x * x).float(), out=mesh[row])
    return mesh


def linear_map(matrix: np.ndarray, vectors: Tensor) -> Tensor:
    """A 3x3 matrix applied to vectors (3, ...), in their own precision.

    Written out, because a matrix product may be computed in TF32 on a GPU, which is too coarse for positions.
    """
    mapped = torch.empty_like(vectors)
    for row, weights in enumerate(np.asarray(matrix, dtype=np.float64).tolist()):
        mapped[row] = vectors[0] * weights[0]
        for column in (1, 2):
            if weights[column] != 0:
                mapped[row].add_(vectors[column], alpha=weights[column])
    return mapped


def affine_map(matrix: np.ndarray, points: Tensor) -> Tensor:
    """The images of points (3, ...) under a 4x4 matrix, in their own precision."""
    mapped = linear_map(matrix[:3, :3], points)
    for row, offset in enumerate(matrix[:3, 3].tolist()):
        mapped[row] += offset
    return mapped


def sample(
    volume: Tensor,
    voxel: Tensor,
    interpolation: Interpolation = Interpolation.LINEAR,
    outside: Outside = Outside.CONSTANT,
    fill: float = 0.0,
) -> Tensor:
    """Values of a volume at a dense mesh of voxel positions.

    Args:
        volume: (1, C, z, y, x).
        voxel: (3, z', y', x') positions (x, y, z) in voxels of `volume`.
        interpolation: NEAREST or LINEAR.
        outside: what holds outside the volume.
        fill: the constant outside, for `Outside.CONSTANT`.

    Returns:
        (1, C, z', y', x'), in the volume's precision.

    Raises:
        ValueError: for CUBIC, which only `Image.resampled` and `DisplacementField.warp` offer.
    """
    shape = (voxel.shape[1], voxel.shape[2], voxel.shape[3])
    return sample_mapped(volume, shape, lambda slab: voxel[:, slab], interpolation, outside, fill)


def sample_mapped(
    volume: Tensor,
    shape: tuple[int, int, int],
    positions: Callable[[slice], Tensor],
    interpolation: Interpolation = Interpolation.LINEAR,
    outside: Outside = Outside.CONSTANT,
    fill: float = 0.0,
) -> Tensor:
    """Like `sample`, with positions that are computed slab by slab.

    Args:
        volume: (1, C, z, y, x).
        shape: (z', y', x') of the result.
        positions: for a range of z', the voxel positions (3, that many, y', x').
        interpolation, outside, fill: as for `sample`.

    Returns:
        (1, C, z', y', x').
    """
    if interpolation is Interpolation.CUBIC:
        raise ValueError("a dense mesh is sampled by NEAREST or LINEAR interpolation")
    read = _nearest if interpolation is Interpolation.NEAREST else _linear
    size = torch.tensor(volume.shape[:1:-1], device=volume.device).view(3, 1, 1, 1)
    values = volume.new_empty(1, volume.shape[1], *shape)
    for slab in slabs(shape, volume.device):
        voxel = positions(slab)
        values[:, :, slab] = read(volume, voxel)
        if outside is Outside.CONSTANT:
            beyond = ((voxel < -0.5) | (voxel >= size - 0.5)).any(dim=0)
            values[:, :, slab].masked_fill_(beyond, fill)
    return values


def _linear(volume: Tensor, voxel: Tensor) -> Tensor:
    if volume.dtype not in (torch.float32, torch.float64):
        # grid_sample wants positions in the volume's precision, and half precision cannot hold positions.
        parts = volume.split(CHANNELS_AT_ONCE_FROM_HALF, dim=1)
        return torch.cat([_linear(part.float(), voxel).to(volume.dtype) for part in parts], dim=1)
    scale = 2 / torch.tensor(volume.shape[:1:-1], dtype=volume.dtype, device=voxel.device)
    cube = torch.addcmul((scale / 2 - 1).view(3, 1, 1, 1), voxel.to(volume.dtype), scale.view(3, 1, 1, 1))
    cube = cube.permute(1, 2, 3, 0)
    if volume.device.type != "cpu":
        return functional.grid_sample(volume, cube[None], padding_mode="border", align_corners=False)
    # On a CPU grid_sample uses one thread per item of a batch, so every slice becomes an item.
    volumes = volume.expand(len(cube), *volume.shape[1:])
    values = functional.grid_sample(volumes, cube[:, None], padding_mode="border", align_corners=False)
    return values.permute(2, 1, 0, 3, 4)


def _nearest(volume: Tensor, voxel: Tensor) -> Tensor:
    # grid_sample rounds ties to even; ITK rounds them up, and label maps meet ties often.
    depth, height, width = volume.shape[2:]
    x, y, z = torch.floor(voxel + 0.5).long().unbind(0)
    index = (z.clamp(0, depth - 1) * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    return volume.flatten(2)[:, :, index.flatten()].unflatten(2, tuple(index.shape))


def sample_points(
    volume: Tensor, voxel_points: Tensor, outside: Outside = Outside.CONSTANT, fill: float = 0.0
) -> Tensor:
    """Linear interpolation of a volume (1, C, z, y, x) at points (N, 3), in the points' own precision: (N, C)."""
    size = torch.tensor(volume.shape[:1:-1], device=voxel_points.device)
    clamped = torch.minimum(voxel_points.clamp(min=0), (size - 1).to(voxel_points.dtype))
    lower = torch.minimum(clamped.floor().long(), (size - 2).clamp(min=0))
    fraction = clamped - lower
    upper = torch.minimum(lower + 1, size - 1)
    flat = volume[0].flatten(1)
    values = torch.zeros(len(voxel_points), volume.shape[1], dtype=voxel_points.dtype, device=voxel_points.device)
    for corner in range(8):
        high = torch.tensor([bool(corner & 1), bool(corner & 2), bool(corner & 4)], device=voxel_points.device)
        x, y, z = torch.where(high, upper, lower).unbind(-1)
        weight = torch.where(high, fraction, 1 - fraction).prod(-1, keepdim=True)
        values += weight * flat[:, (z * size[1] + y) * size[0] + x].T.to(values.dtype)
    if outside is Outside.CONSTANT:
        inside = ((voxel_points >= -0.5) & (voxel_points < size - 0.5)).all(-1, keepdim=True)
        values = torch.where(inside, values, torch.full_like(values, fill))
    return values
