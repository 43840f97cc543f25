"""Fields for hosts that interpolate cubically, as Slicer does with every field that it reads from a file.

A registration is solved, measured and written for ITK with linear interpolation. Between the same samples a
cubic curve takes another course, by tenths of a millimeter where a field bends sharply. The field given here has
samples of its own, at half the distance or less, through which the cubic course follows the linear one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..field import DisplacementField
from ..grid import Grid

TOLERANCE_MM = 0.1
"""Largest gap between both courses, where voxels allow it."""

MOST_VOXELS = 40_000_000
"""Of a field with samples at half the distance; half a gigabyte."""

MOST_VOXELS_FINER = 4_000_000
"""Of a field with up to four times as many samples along every axis."""

_STRAIGHT_MM = 1e-3
_LARGEST_FACTOR = 4
_SHARPEST_PLACES = 200
_ROUNDING = 0.04234
"""By how much of its second difference on the finer grid a sample moves towards its neighbors, so that the cubic
course rounds a corner by as much as it overshoots beside it: then it strays least."""

Array = NDArray[np.float64]


def cubic_field(field: DisplacementField, region: Grid) -> tuple[DisplacementField, float]:
    """A field whose cubic interpolation follows the linear interpolation of another one.

    Args:
        field: to be followed; given back as it is where it is straight, or would need too many voxels.
        region: the box in which this matters.

    Returns:
        The field, and the largest gap in mm between both courses, looked for where `field` bends most.
    """
    bend = _bend(field, region)
    if float(bend.max()) < _STRAIGHT_MM:
        return field, 0.0
    if field.grid.number_of_voxels * 2**3 > MOST_VOXELS:
        return field, _largest_gap(field, field, 1, bend)
    followed = _refined(field, 2)
    gap = _largest_gap(field, followed, 2, bend)
    # The gap shrinks as the distance of the samples does.
    factor = min(math.ceil(2 * gap / TOLERANCE_MM), _LARGEST_FACTOR)
    if factor > 2 and field.grid.number_of_voxels * factor**3 <= MOST_VOXELS_FINER:
        followed = _refined(field, factor)
        gap = _largest_gap(field, followed, factor, bend)
    return followed, gap


def _refined(field: DisplacementField, factor: int) -> DisplacementField:
    """The samples with `factor` times as many along every axis, one axis after the other."""
    values, grid = field.data[0].cpu(), field.grid
    for axis in (1, 2, 3):
        values = torch.movedim(_refined_along_last(torch.movedim(values, axis, -1), factor), -1, axis)
    size = tuple(factor * (count - 1) + 1 for count in grid.size)
    spacing = tuple(spacing / factor for spacing in grid.spacing)
    finer = Grid(size, spacing, grid.origin, grid.direction)  # type: ignore[arg-type]
    return DisplacementField(values.contiguous()[None], finer)


def _refined_along_last(values: Tensor, factor: int) -> Tensor:
    count = values.shape[-1]
    refined = values.new_empty(*values.shape[:-1], factor * (count - 1) + 1)
    refined[..., ::factor] = values
    if count > 2:
        refined[..., factor:-factor:factor] += _ROUNDING / factor * torch.diff(values, n=2, dim=-1)
    for step in range(1, factor):
        share = step / factor
        refined[..., step::factor] = (1 - share) * values[..., :-1] + share * values[..., 1:]
    return refined


def _bend(field: DisplacementField, region: Grid) -> Tensor:
    """Lengths of the second differences along the three axes, summed: (z, y, x) in mm; 0 outside the region."""
    u = field.data[0].cpu()
    total = torch.zeros(u.shape[1:])
    for axis in (1, 2, 3):
        if u.shape[axis] > 2:
            inner = torch.diff(u, n=2, dim=axis).norm(dim=0)
            total.narrow(axis - 1, 1, inner.shape[axis - 1]).add_(inner)
    voxels = np.stack(np.meshgrid(*map(np.arange, total.shape), indexing="ij")[::-1], axis=-1)
    return total * torch.from_numpy(region.contains(field.grid.to_world(voxels)))


def _largest_gap(field: DisplacementField, followed: DisplacementField, factor: int, bend: Tensor) -> float:
    """The largest distance in mm between the two courses around the places where the field bends most."""
    places = bend.flatten().topk(min(_SHARPEST_PLACES, bend.numel())).indices.numpy()
    nodes = np.stack(np.unravel_index(places, bend.shape), axis=1).astype(np.float64)
    shares = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = np.clip((nodes[:, None] + shares).reshape(-1, 3), 0, np.array(bend.shape) - 1)
    gap = interpolated(followed, voxels * factor, cubic=True) - interpolated(field, voxels, cubic=False)
    return float(np.linalg.norm(gap, axis=1).max())


def interpolated(field: DisplacementField, voxels: Array, cubic: bool) -> Array:
    """Displacements in mm (n, 3) at voxel positions (n, 3) in the order z, y, x, as VTK interpolates them."""
    u = np.moveaxis(field.data[0].cpu().numpy(), 0, -1)
    z, y, x = (_taps(voxels[:, axis], u.shape[axis], cubic) for axis in range(3))
    around = u[z[0][:, :, None, None], y[0][:, None, :, None], x[0][:, None, None, :]]
    for weights in (x[1], y[1], z[1]):
        around = (around * weights.reshape(len(voxels), *[1] * (around.ndim - 3), 4, 1)).sum(axis=-2)
    return np.asarray(around)


def _taps(positions: Array, count: int, cubic: bool) -> tuple[NDArray[np.int64], Array]:
    """Samples (n, 4) along an axis that take part in values at `positions`, and their weights (n, 4).

    Cubic weights are those of Catmull and Rom; beside the borders, where a neighbor is missing, VTK takes the
    parabola through the three samples that there are.
    """
    first = np.clip(np.floor(positions).astype(np.int64), 0, max(count - 2, 0))
    f = np.clip(positions - first, 0.0, 1.0)
    zero = np.zeros_like(f)
    if not cubic or count < 4:
        weights = np.stack([zero, 1 - f, f, zero], axis=1)
    else:
        inner = [-f * (1 - f) ** 2, 2 - 5 * f**2 + 3 * f**3, f + 4 * f**2 - 3 * f**3, -(f**2) * (1 - f)]
        lower = [zero, (1 - f) * (2 - f), 2 * f * (2 - f), -f * (1 - f)]
        upper = [-f * (1 - f), 2 * (1 - f) * (1 + f), f * (1 + f), zero]
        place = np.select([first == 0, first == count - 2], [1, 2], 0)
        weights = np.stack([inner, lower, upper])[place, :, np.arange(len(f))] / 2
    return np.clip(first[:, None] + np.arange(-1, 3), 0, count - 1), weights
