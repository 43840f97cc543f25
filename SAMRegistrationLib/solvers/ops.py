"""Displacement fields in voxels of their own grid: warp, compose, resize, integrate, Jacobian.

A field u is (1, 3, z, y, x) with components (x, y, z): the voxel with index x of the fixed grid corresponds to the
position x + u(x), in voxels, of the moving grid. Voxel centers lie at integers. Positions outside a volume take
the value of its border.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.table_sampling import channel_table, sample_table

CHANNELS_PER_CHUNK = 32
TABLE_CHANNELS = 8
PLANES_PER_SLAB = 8

Shape = Sequence[int]
Part = tuple[slice, slice, slice]
"""Every so many voxels of a range along z, y and x."""


def identity_positions(
    shape: Shape, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the voxel indices of a (z, y, x) grid as a (1, 3, z, y, x) tensor with components (x, y, z)."""
    axes = [torch.arange(size, device=device, dtype=dtype) for size in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y, z))[None]


def zero_field(shape: Shape, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the zero displacement (1, 3, z, y, x) on a (z, y, x) grid."""
    return torch.zeros((1, 3, *shape), device=device)


def warp(volume: torch.Tensor, u: torch.Tensor, mode: str = "bilinear", padding: str = "border") -> torch.Tensor:
    """Sample `volume` at x + u(x) for every voxel x of the grid of u.

    Args:
        volume: (1, C, z, y, x), any floating type. Its size may differ from that of u as long as both count
            voxels of the same size from the same first voxel.
        u: (1, 3, z', y', x') displacement in voxels.
        mode: "bilinear" (trilinear) or "nearest".
        padding: "border" or "zeros", what to take outside the volume.

    Returns:
        (1, C, z', y', x') in the type of `volume`. Differentiable in u; in `volume` too unless many channels are
        sampled from a volume that does not require a gradient. Channels go through in chunks, so the extra
        memory does not grow with C.
    """
    frozen = not volume.requires_grad and not u.requires_grad
    if frozen and mode == "bilinear" and padding == "border" and _table_is_faster(volume):
        return _warp_by_table(volume, u)
    grid = _sampling_grid(volume.shape[2:], u)
    chunks = [
        F.grid_sample(chunk.to(grid.dtype), grid, mode=mode, padding_mode=padding, align_corners=False).to(
            volume.dtype
        )
        for chunk in volume.split(CHANNELS_PER_CHUNK, dim=1)
    ]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def _table_is_faster(volume: torch.Tensor) -> bool:
    return volume.device.type == "cpu" and volume.shape[1] >= TABLE_CHANNELS


def _warp_by_table(volume: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """On a CPU many channels are sampled about ten times faster as rows of a table than by grid_sample."""
    shape = u.shape[2:]
    result = volume.new_empty((1, volume.shape[1], *shape))
    positions = identity_positions(shape, u.device).add_(u.float())
    for start in range(0, volume.shape[1], CHANNELS_PER_CHUNK):
        chunk = volume[:, start : start + CHANNELS_PER_CHUNK]
        table = channel_table(chunk.float())
        for z in range(shape[0]):
            rows = sample_table(table, volume.shape[2:], positions[0, :, z].flatten(1).t())
            result[0, start : start + chunk.shape[1], z] = rows.t().unflatten(1, shape[1:])
    return result


def _sampling_grid(shape: Shape, u: torch.Tensor) -> torch.Tensor:
    """Positions x + u(x) in the [-1, 1] cube of a volume of `shape`, (1, z, y, x, 3), align_corners=False."""
    u = u if u.dtype == torch.float64 else u.float()
    sizes = torch.tensor([shape[2], shape[1], shape[0]], device=u.device, dtype=u.dtype).view(1, 3, 1, 1, 1)
    positions = identity_positions(u.shape[2:], u.device, u.dtype) + u
    return ((2.0 * positions + 1.0) / sizes - 1.0).permute(0, 2, 3, 4, 1)


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the displacement of going through `first` and then `second`: first(x) + second(x + first(x)).

    In a pyramid, where v registers the fixed volume to the moving volume already warped by u, the total
    displacement is `compose(v, u)`. Both are (1, 3, z, y, x) on the same grid, in its voxels.
    """
    return first + warp(second, first)


def upsample(u: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Resample a displacement to a grid of `shape` (z, y, x) over the same box, values rescaled to its voxels.

    Also takes a field to a coarser grid; halving a size averages pairs of voxels.
    """
    if tuple(u.shape[2:]) == tuple(shape):
        return u
    ratios = tuple(shape[axis] / u.shape[2 + axis] for axis in (2, 1, 0))
    values = F.interpolate(u, size=tuple(shape), mode="trilinear", align_corners=False)
    return values * _factors(ratios, u.device, u.dtype)


@functools.lru_cache(maxsize=64)
def _factors(ratios: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Three numbers for the components of a field; kept, since a GPU waits for every tensor that is sent to it."""
    with torch.inference_mode(False):
        return torch.tensor(ratios, device=device, dtype=dtype).view(1, 3, 1, 1, 1)


def integrate_velocity(velocity: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """Integrate a stationary velocity (voxels per unit time) over unit time by scaling and squaring.

    Args:
        velocity: (1, 3, z, y, x).
        steps: squarings; the start is velocity / 2**steps.

    Returns:
        The displacement of the flow at time one, like `velocity`.
    """
    u = velocity / float(2**steps)
    for _ in range(steps):
        u = compose(u, u)
    return u


def jacobian_determinant(u: torch.Tensor) -> torch.Tensor:
    """Determinant of I + grad u by central differences (one-sided on the border), (1, 1, z, y, x).

    Volume factors are unitless, so the result holds in mm as well for orthogonal axes.
    """
    return _determinant([torch.gradient(u[0], dim=axis)[0] for axis in (3, 2, 1)])[None, None]


def corner_determinant(u: torch.Tensor, corner: Sequence[int], step: Sequence[int] = (1, 1, 1)) -> torch.Tensor:
    """Determinant of I + grad u with forward (+1) or backward (-1) differences per axis.

    The eight choices are the corner determinants of the non-diffeomorphic volume of LUMIR: a trilinearly
    interpolated field folds nowhere near a voxel unless one of them is negative there.

    Args:
        u: (1, 3, z, y, x).
        corner: (x, y, z), each +1 or -1.
        step: (x, y, z), evaluate only every step-th voxel.

    Returns:
        (z', y', x') of the voxels that have a neighbor on all three chosen sides.
    """
    return determinant_at_corner(at_parts(u, corner_parts(u.shape[2:], corner, step)), corner)


def corner_parts(
    shape: Shape, corner: Sequence[int], step: Sequence[int], starts: Sequence[int] = (0, 0, 0)
) -> list[Part]:
    """The voxels (z, y, x) of a grid at which a corner determinant is taken, and their x, y and z neighbors.

    Args:
        shape: (z, y, x) of the grid.
        corner: (x, y, z), each +1 or -1.
        step: (x, y, z), every step-th voxel only.
        starts: (z, y, x), the first voxels to look at.
    """
    return [_corner_slices(shape, corner, step, starts, axis) for axis in (None, 0, 1, 2)]


def determinant_at_corner(values: torch.Tensor, corner: Sequence[int]) -> torch.Tensor:
    """The determinant (z, y, x) from the displacements (4, 3, z, y, x) at `corner_parts`."""
    return _determinant([corner[axis] * (values[axis + 1] - values[0]) for axis in range(3)])


def at_parts(u: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    """A field (1, 3, z, y, x) at strided parts of its grid, all of one shape: (n, 3, z', y', x')."""
    values: torch.Tensor = _Parts.apply(u[0], tuple(parts))
    return values


class _Parts(torch.autograd.Function):
    """One function because the backward pass of several slices would fill several full volumes."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        ctx.shape, ctx.parts = u.shape, parts
        return torch.stack([u[:, z, y, x] for z, y, x in parts])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        result = gradients[0].new_zeros(ctx.shape)
        for (z, y, x), gradient in zip(ctx.parts, gradients[0], strict=True):
            result[:, z, y, x] += gradient
        return result, None


def _corner_slices(
    shape: Shape, corner: Sequence[int], step: Sequence[int], starts: Sequence[int], axis: int | None
) -> Part:
    slices = []
    for dim, component in ((0, 2), (1, 1), (2, 0)):
        forward = corner[component] > 0
        offset = corner[component] if component == axis else 0
        first = starts[dim] + (0 if forward else 1) + offset
        last = shape[dim] - (1 if forward else 0) + offset
        slices.append(slice(first, last, step[component]))
    return slices[0], slices[1], slices[2]


def smallest_corner_determinant(u: torch.Tensor) -> torch.Tensor:
    """Smallest of the eight corner determinants at every voxel, (1, 1, z, y, x).

    Border voxels take those corners they have. This is stricter than central differences, which miss
    checkerboard folds.
    """
    depth = u.shape[2]
    planes = PLANES_PER_SLAB if u.device.type == "cpu" else depth
    slabs = []
    for start in range(0, depth, planes):
        first, last = max(0, start - 1), min(depth, start + planes + 1)
        smallest = _smallest_of_corners(u[0, :, first:last])
        slabs.append(smallest[start - first : start - first + planes])
    return torch.cat(slabs)[None, None]


def _smallest_of_corners(u: torch.Tensor) -> torch.Tensor:
    """Smallest corner determinant of (3, z, y, x); backward differences are the forward ones of a neighbor."""
    shape = u.shape[1:]
    steps = {axis: u.diff(dim=axis) for axis in (1, 2, 3)}
    smallest = u.new_full(shape, float("inf"))
    for signs in product((1, -1), repeat=3):
        inner = [slice(0, n - 1) if sign > 0 else slice(1, n) for sign, n in zip(signs, shape, strict=True)]
        columns = []
        for axis in (3, 2, 1):
            region = list(inner)
            region[axis - 1] = slice(0, shape[axis - 1] - 1)
            columns.append(steps[axis][:, region[0], region[1], region[2]])
        part = smallest[inner[0], inner[1], inner[2]]
        torch.minimum(part, _determinant(columns), out=part)
    return smallest


def _determinant(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """Determinant of I + G from the derivatives (3, z, y, x) of the displacement along x, y and z."""
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = columns
    xx, yy, zz = xx + 1.0, yy + 1.0, zz + 1.0
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)
