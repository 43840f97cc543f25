"""Reading values of a volume at arbitrary voxel positions, with ITK's rules at the border.

A position belongs to the volume up to half a voxel beyond the outermost centers; there the edge value holds.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .grid import Grid


class Interpolation(Enum):
    """How values between voxel centers are read."""

    NEAREST = "nearest"
    LINEAR = "linear"
    CUBIC = "cubic"


class Outside(Enum):
    """What holds outside a volume: a constant, or the nearest value of the edge."""

    CONSTANT = "constant"
    EDGE = "edge"


def voxel_mesh(shape: tuple[int, ...], matrix: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """The images of all voxel coordinates of a (z, y, x) shape under a 4x4 matrix: (3, z, y, x), float32.

    Built from the three axes, so that no mesh of the identity is stored.
    """
    z, y, x = (torch.arange(n, dtype=torch.float64, device=device) for n in shape)
    columns = torch.as_tensor(matrix[:3], dtype=torch.float64, device=device)
    rows = []
    for row in columns:
        zy = (row[2] * z + row[3])[:, None] + (row[1] * y)[None, :]
        rows.append(zy[:, :, None].float() + (row[0] * x).float())
    return torch.stack(rows)


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
        (1, C, z', y', x').

    Raises:
        ValueError: for CUBIC, which only `Image.warped` offers.
    """
    size = torch.tensor(volume.shape[:1:-1], dtype=voxel.dtype, device=voxel.device).view(3, 1, 1, 1)
    if interpolation is Interpolation.LINEAR:
        cube = ((voxel * 2 + 1) / size - 1).permute(1, 2, 3, 0)[None]
        mode = "bilinear"
        values = functional.grid_sample(
            volume, cube.to(volume.dtype), mode=mode, padding_mode="border", align_corners=False
        )
    elif interpolation is Interpolation.NEAREST:
        values = _nearest(volume, voxel)
    else:
        raise ValueError("a dense mesh is sampled by NEAREST or LINEAR interpolation")
    if outside is Outside.CONSTANT:
        inside = ((voxel >= -0.5) & (voxel <= size - 0.5)).all(dim=0)
        values = torch.where(inside, values, torch.as_tensor(fill, dtype=values.dtype, device=values.device))
    return values


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
        inside = ((voxel_points >= -0.5) & (voxel_points <= size - 0.5)).all(-1, keepdim=True)
        values = torch.where(inside, values, torch.full_like(values, fill))
    return values


def between_grids(target: Grid, source: Grid) -> np.ndarray:
    """4x4 matrix from voxel coordinates of `target` to voxel coordinates of `source` at the same world place."""
    return source.world_to_voxel @ target.voxel_to_world
