"""How far along the body a volume reaches, and its part between two heights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..grid import Grid
from ..image import Image

TAIL = 0.003
"""Of a body's voxels that may lie beyond its ends."""

Heights = tuple[float, float]
"""Lower and upper height along the S axis of the world in mm."""


def heights(body: Image) -> Heights:
    """Between which heights all but a few voxels of a body lie."""
    slices = body.data.sum(dim=(1, 2)).double().cumsum(0).cpu().numpy()
    first, last = np.searchsorted(slices / slices[-1], [TAIL, 1 - TAIL])
    lower, upper = (body.grid.origin[2] + body.grid.spacing[2] * end for end in (first - 0.5, last + 0.5))
    return float(lower), float(upper)


def cut(volume: Image, kept: Heights) -> Image:
    """The slices of a volume, whose axes lie along L, P, S, between two heights."""
    grid, first, last = cut_grid(volume.grid, kept)
    return replace(volume, data=volume.data[first:last].contiguous(), grid=grid)


def cut_grid(grid: Grid, kept: Heights) -> tuple[Grid, int, int]:
    """The part of a grid between two heights, its first slice and the one after its last."""
    levels = grid.origin[2] + grid.spacing[2] * np.arange(grid.size[2])
    slices = np.flatnonzero((levels >= kept[0]) & (levels <= kept[1]))
    first, last = int(slices[0]), int(slices[-1]) + 1
    return grid.cropped((0, 0, first), (*grid.size[:2], last)), first, last
