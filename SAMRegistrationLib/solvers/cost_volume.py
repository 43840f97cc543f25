"""Cost of every shift in a cube around every voxel.

`cost[0, k, z, y, x]` compares the fixed features at (z, y, x) with the moving features at that voxel plus
`displacements(radius)[k]`. Shifts beyond the border of the moving volume see its border voxels.

Dot products of all shifts are computed as matrix products between small square blocks of voxels of all fixed
planes within reach and the larger blocks of a moving plane that these can reach; the wanted shifts are bands of
the products. About half of the products are thrown away, yet this is several times faster than adding up shifted
volumes (no memory traffic per shift) and needs little more memory than the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import Enum

import torch
import torch.nn.functional as F

BLOCK_ON_CPU = 4
BLOCK_ON_DEVICE = 8
CHANNELS_PER_CHUNK = 16


class Measure(str, Enum):
    """How two feature vectors f and m are compared."""

    COSINE = "cosine"
    """1 - f.m; for unit vectors this is half their squared distance (SAMConvex equation 4)."""
    SQUARED = "squared"
    """Half the squared distance, for vectors that are not of unit length."""
    ABSOLUTE = "absolute"
    """Mean absolute difference over the channels."""


def displacements(radius: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the ((2 radius + 1)**3, 3) shifts in the order of the cost volume.

    Components are (x, y, z) in voxels; z varies slowest and x fastest, each from -radius to radius, so that the
    middle row is the zero shift.
    """
    line = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack((x, y, z), dim=-1).reshape(-1, 3)


@torch.no_grad()
def cost_volume(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    radius: int,
    measure: Measure | str = Measure.COSINE,
    *,
    fixed_valid: torch.Tensor | None = None,
    moving_valid: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Compare each fixed voxel with all moving voxels within `radius` voxels along each axis.

    Args:
        fixed: (1, C, z, y, x) features; unit vectors for `Measure.COSINE`. Any floating type.
        moving: features on the same grid.
        radius: N, at least 1; the search covers (2N + 1)**3 shifts.
        measure: see `Measure`.
        fixed_valid: (1, 1, z, y, x); where it is 0 the cost is 0 for all shifts, so that only the coupling to the
            neighbors moves such a voxel.
        moving_valid: (1, 1, z, y, x); a shift into a voxel where it is 0 costs the mean of the voxel's valid
            shifts: neither attractive nor repelling.
        dtype: of the result; float16 halves its memory and rounds by at most 5e-4.

    Returns:
        (1, (2N + 1)**3, z, y, x), ordered as `displacements(radius)`.

    Raises:
        ValueError: for tensors of different shape or a radius below 1.
    """
    if fixed.shape != moving.shape or fixed.dim() != 5 or fixed.shape[0] != 1:
        raise ValueError(f"features must share one (1, C, z, y, x) shape, not {fixed.shape} and {moving.shape}")
    if radius < 1:
        raise ValueError(f"the search radius must be at least one voxel, not {radius}")
    measure = Measure(measure)
    if measure is Measure.ABSOLUTE:
        cost = _absolute_differences(fixed, moving, radius, dtype)
    else:
        cost = _dot_products(fixed, moving, radius, dtype)
        _distance_from_products(cost, fixed, moving, radius, measure)
    if moving_valid is not None:
        _neutralize(cost, moving_valid, radius)
    if fixed_valid is not None:
        cost.mul_((fixed_valid > 0).to(dtype))
    return cost


def _distance_from_products(
    cost: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, radius: int, measure: Measure
) -> None:
    if measure is Measure.COSINE:
        cost.neg_().add_(1.0)
        return
    half_fixed = 0.5 * _squared_norm(fixed)[0, 0]
    half_moving = _shifted(0.5 * _squared_norm(moving), radius)[:, :, :, 0]
    for costs, halves in _rows(cost, half_moving):
        half_distance = half_fixed + halves - costs.float()
        costs.copy_(half_distance.clamp_(min=0.0))


def _squared_norm(features: torch.Tensor) -> torch.Tensor:
    chunks = features.split(CHANNELS_PER_CHUNK, dim=1)
    return torch.stack([chunk.float().square().sum(1, keepdim=True) for chunk in chunks]).sum(0)


def _dot_products(fixed: torch.Tensor, moving: torch.Tensor, radius: int, dtype: torch.dtype) -> torch.Tensor:
    _, _, depth, height, width = fixed.shape
    block = BLOCK_ON_CPU if fixed.device.type == "cpu" else BLOCK_ON_DEVICE
    side = 2 * radius + 1
    result = torch.empty((side, side, side, depth, height, width), device=fixed.device, dtype=dtype)
    fixed_blocks: dict[int, torch.Tensor] = {}
    for plane in range(-radius, depth + radius):
        if plane + radius < depth:
            fixed_blocks[plane + radius] = _blocks(fixed[0, :, plane + radius], block, halo=0)
        fixed_blocks.pop(plane - radius - 1, None)
        moving_blocks = _blocks(moving[0, :, min(max(plane, 0), depth - 1)], block, halo=radius).transpose(1, 2)
        nearby = list(reversed(fixed_blocks))
        products = torch.bmm(torch.cat([fixed_blocks[z] for z in nearby], dim=1), moving_blocks)
        bands = _bands(products, len(nearby), block, radius, height, width)
        _reached(result, plane, nearby[0], len(nearby)).copy_(bands[..., :height, :width])
    return result.view(1, side**3, depth, height, width)


def _reached(result: torch.Tensor, plane: int, first: int, count: int) -> torch.Tensor:
    """Where the products of a moving plane belong: (fixed plane from `first` down, shift y, shift x, y, x)."""
    side, _, _, _, height, width = result.shape
    shift, shift_y, shift_x, fixed_plane, row, column = result.stride()
    return result.as_strided(
        (count, side, side, height, width),
        (shift - fixed_plane, shift_y, shift_x, row, column),
        (plane - first + side // 2) * shift + first * fixed_plane,
    )


def _blocks(plane: torch.Tensor, block: int, halo: int) -> torch.Tensor:
    """Cut a (C, y, x) plane into squares of `block` voxels and their halo: (squares, voxels per square, C)."""
    channels, height, width = plane.shape
    padding = (halo, halo - width % -block, halo, halo - height % -block)
    padded = F.pad(plane[None], padding, mode="replicate")[0]
    squares = padded.unfold(1, block + 2 * halo, block).unfold(2, block + 2 * halo, block)
    return squares.permute(1, 2, 3, 4, 0).reshape(-1, (block + 2 * halo) ** 2, channels)


def _bands(products: torch.Tensor, planes: int, block: int, radius: int, height: int, width: int) -> torch.Tensor:
    """View the products fixed voxel x reachable voxel as (fixed plane, shift y, shift x, y, x)."""
    side, reach = 2 * radius + 1, block + 2 * radius
    rows, columns = -(-height // block), -(-width // block)
    per_row = reach * reach
    per_plane = block * block * per_row
    per_block = planes * per_plane
    view = products.as_strided(
        (planes, side, side, rows, block, columns, block),
        (per_plane, reach, 1, columns * per_block, block * per_row + reach, per_block, per_row + 1),
    )
    return view.reshape(planes, side, side, rows * block, columns * block)


def _absolute_differences(
    fixed: torch.Tensor, moving: torch.Tensor, radius: int, dtype: torch.dtype
) -> torch.Tensor:
    channels = fixed.shape[1]
    total = torch.zeros(((2 * radius + 1) ** 3, *fixed.shape[2:]), device=fixed.device)
    for start in range(0, channels, CHANNELS_PER_CHUNK):
        chunk = fixed[0, start : start + CHANNELS_PER_CHUNK].float()
        shifted = _shifted(moving[:, start : start + CHANNELS_PER_CHUNK].float(), radius)
        for totals, candidates in _rows(total, shifted):
            for summed, candidate in zip(totals, candidates, strict=True):
                summed += (chunk - candidate).abs_().sum(0)
    return total.div_(channels).to(dtype)[None]


def _shifted(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """A (1, C, z, y, x) volume under every shift: a view (shift z, shift y, shift x, C, z, y, x)."""
    padded = F.pad(volume, (radius,) * 6, mode="replicate")[0]
    for axis, size in enumerate(volume.shape[2:], start=1):
        padded = padded.unfold(axis, size, 1)
    return padded.movedim(0, 3)


def _rows(cost: torch.Tensor, shifted: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The shifts that differ along x only, of the costs (shift x, z, y, x) and of a shifted volume.

    One by one they would be hundreds of small kernels on a GPU, all at once as large as the costs again.
    """
    shifts = shifted.shape[:3]
    by_shift = cost.view(*shifts, *shifted.shape[-3:])
    for z, y in itertools.product(range(shifts[0]), range(shifts[1])):
        yield by_shift[z, y], shifted[z, y]


def _neutralize(cost: torch.Tensor, moving_valid: torch.Tensor, radius: int) -> None:
    valid = _shifted((moving_valid > 0).float(), radius)[:, :, :, 0]
    total = torch.zeros(cost.shape[2:], device=cost.device)
    for costs, reachable in _rows(cost, valid):
        total += (costs * reachable).sum(0)
    neutral = (total / valid.sum((0, 1, 2)).clamp(min=1.0)).to(cost.dtype)
    for costs, reachable in _rows(cost, valid):
        costs.copy_(torch.where(reachable > 0, costs, neutral))
