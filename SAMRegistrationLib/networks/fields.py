"""Displacement fields inside networks: warp, compose, integrate, and change of resolution by whole strides.

The conventions are those of ``solvers/ops.py``: a field u is (batch, 3, z, y, x) with components (x, y, z); the
voxel with index x of the fixed grid corresponds to the position x + u(x), in voxels, of the moving grid. Voxel
centers lie at integers and positions outside a volume take the value of its border. Unlike there, fields have a
batch, and every operation can be exported and differentiated.

A grid of stride s has ceil(size / s) voxels; its voxel i covers the voxels s i to s i + s - 1 of the fine grid,
even if the last of them lie beyond the fine grid's end. So resolutions agree exactly for any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SQUARINGS = 7


def identity_positions(shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The voxel indices of a (z, y, x) grid, (1, 3, z, y, x) with components (x, y, z), float32."""
    z, y, x = (torch.arange(size, device=device, dtype=torch.float32) for size in shape)
    return torch.stack(
        (
            x.view(1, 1, -1).expand(tuple(shape)),
            y.view(1, -1, 1).expand(tuple(shape)),
            z.view(-1, 1, 1).expand(tuple(shape)),
        )
    )[None]


def warp(volume: Tensor, field: Tensor) -> Tensor:
    """The volume (B, C, z, y, x) read at x + u(x), trilinearly, for a field (B, 3, z', y', x') in its voxels.

    The result has the field's size and the volume's type; positions are float32 under autocast too.
    """
    positions = identity_positions(field.shape[2:], field.device) + field.float()
    sizes = positions.new_tensor([volume.shape[4], volume.shape[3], volume.shape[2]]).view(1, 3, 1, 1, 1)
    cube = ((2.0 * positions + 1.0) / sizes - 1.0).permute(0, 2, 3, 4, 1)
    values = functional.grid_sample(
        volume.float(), cube, mode="bilinear", padding_mode="border", align_corners=False
    )
    return values.to(volume.dtype)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The displacement of going through `first` and then `second`: first(x) + second(x + first(x))."""
    return first + warp(second, first)


def integrate_velocity(velocity: Tensor, squarings: int = SQUARINGS) -> Tensor:
    """The displacement at time one of the flow of a stationary velocity in voxels, by scaling and squaring."""
    field = velocity.float() / float(2**squarings)
    for _ in range(squarings):
        field = compose(field, field)
    return field


def pad_to_multiple(volume: Tensor, multiple: int) -> Tensor:
    """Continue a (B, C, z, y, x) volume at the far end of each axis, with its border, to multiples of a number.

    Indices keep their meaning, so a result is cut back by `crop`.
    """
    padding: list[int] = []
    for size in reversed(volume.shape[2:]):
        padding += [0, -size % multiple]
    return functional.pad(volume, padding, mode="replicate") if any(padding) else volume


def crop(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """The first voxels of a (B, C, z, y, x) volume, as many as `shape` says."""
    return volume[:, :, : shape[0], : shape[1], : shape[2]]


def strided_shape(shape: Sequence[int], stride: int) -> tuple[int, int, int]:
    """The (z, y, x) size of the grid of that stride."""
    depth, height, width = (-(-int(size) // stride) for size in shape)
    return depth, height, width


def coarsen(volume: Tensor, stride: int) -> Tensor:
    """A (B, C, z, y, x) volume on the grid of that stride: the mean of what each coarse voxel covers."""
    if stride == 1:
        return volume
    return average(pad_to_multiple(volume, stride), stride, stride)


def average(volume: Tensor, size: int, stride: int = 1, padding: int = 0) -> Tensor:
    """The mean over cubes, without what lies outside, in the volume's type; CPUs only have it for float32."""
    pooled = functional.avg_pool3d(volume.float(), size, stride, padding, count_include_pad=False)
    return pooled.to(volume.dtype)


def enlarge(volume: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """A (B, C, z, y, x) volume of that stride on the fine grid of `shape`, trilinearly."""
    if stride == 1:
        return crop(volume, shape)
    return crop(
        functional.interpolate(volume, scale_factor=float(stride), mode="trilinear", align_corners=False), shape
    )


def enlarge_field(field: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """A displacement of the grid of that stride on the fine grid of `shape`, in the fine grid's voxels."""
    return enlarge(field.float(), stride, shape) * float(stride)
