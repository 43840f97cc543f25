"""How smooth and how invertible a displacement field is.

Fields are in voxels, (1, 3, z, y, x) with components x, y, z; determinants do not depend on the spacing. All
measures work through the volume in parts, so that memory stays small, and in the field's own precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

LEARN2REG_CROP = 2
LEARN2REG_SHIFT = 3.0
SMALLEST_DETERMINANT = 1e-9
SLAB, ROWS = 8, 24
"""Voxels along z, and on a CPU along y, that are measured at once: so few stay in its cache."""

Offset = tuple[int, int, int]
"""Steps in voxels along x, y, z."""

CENTER: Offset = (0, 0, 0)
AXES: tuple[Offset, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
INNER_TETRAHEDRA: tuple[tuple[Offset, Offset, Offset], ...] = (
    ((1, 1, 0), (0, 1, 1), (1, 0, 1)),
    ((-1, 0, -1), (0, -1, -1), (-1, -1, 0)),
)
"""The face diagonals that span the tetrahedron in the middle of a cell, for both ways to split it."""


@dataclass(frozen=True)
class FieldQuality:
    """Smoothness and folding of a field.

    `sdlogj_learn2reg` is std log(det J + 3), the number of Learn2Reg's tables; `sdlogj` is the true
    std log(det J), about four times larger for a field without folds. `folded_percent` counts det J <= 0 by
    central differences, `ndv_percent` is the non-diffeomorphic volume, which also sees folds between voxels.
    """

    sdlogj_learn2reg: float
    sdlogj: float
    folded_percent: float
    ndv_percent: float
    smallest_determinant: float
    largest_determinant: float


def field_quality(displacement: Tensor, mask: Tensor | None = None) -> FieldQuality:
    """All measures of a displacement in voxels (1, 3, z, y, x), within an optional mask (z, y, x).

    Raises:
        ValueError: if the field has fewer than five voxels along an axis, or the mask is empty.
    """
    determinant = _inside(jacobian_determinant(displacement), mask)
    return FieldQuality(
        sdlogj_learn2reg=_std_log(determinant + LEARN2REG_SHIFT),
        sdlogj=_std_log(determinant),
        folded_percent=100 * float((determinant <= 0).double().mean()),
        ndv_percent=non_diffeomorphic_volume(displacement, mask),
        smallest_determinant=float(determinant.min()),
        largest_determinant=float(determinant.max()),
    )


def sdlogj_learn2reg(displacement: Tensor, mask: Tensor | None = None) -> float:
    """Learn2Reg's SDlogJ: population std of log(clip(det J + 3, 1e-9, 1e9)), cropped by two voxels."""
    return _std_log(_inside(jacobian_determinant(displacement), mask) + LEARN2REG_SHIFT)


def sdlogj(displacement: Tensor, mask: Tensor | None = None) -> float:
    """The true SDlogJ: population std of log(clip(det J, 1e-9, 1e9)), cropped by two voxels."""
    return _std_log(_inside(jacobian_determinant(displacement), mask))


def folded_percent(displacement: Tensor, mask: Tensor | None = None) -> float:
    """Percentage of voxels with det J <= 0 by central differences, cropped by two voxels."""
    return 100 * float((_inside(jacobian_determinant(displacement), mask) <= 0).double().mean())


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """det(I + du/dx) by central differences, cropped by two voxels per side: (z - 4, y - 4, x - 4).

    Raises:
        ValueError: if the field has fewer than five voxels along an axis.
    """
    margin = LEARN2REG_CROP
    return _by_tiles(displacement, margin, lambda tile: _central_determinant(tile, margin))


def non_diffeomorphic_volume(displacement: Tensor, mask: Tensor | None = None) -> float:
    """NDV: the volume that the digital transformation turns inside out, in percent of the (masked) volume.

    Every cell between eight voxels splits into five tetrahedra in two ways; half of each negative tetrahedron
    counts. (Y. Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV
    2024; cropped by one voxel as in the LUMIR challenge.)

    Raises:
        ValueError: if the field has fewer than three voxels along an axis, or the mask is empty.
    """
    volumes = _by_tiles(displacement, 1, _inverted_volume)
    return 100 * float(_inside(volumes, mask).double().mean())


def _by_tiles(displacement: Tensor, margin: int, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """A measure that loses `margin` voxels per side, put together from overlapping tiles along z and y."""
    if min(displacement.shape[2:]) < 2 * margin + 1:
        raise ValueError(f"a field of {tuple(displacement.shape[2:])} voxels is too small to be measured")
    measured = displacement.new_empty([n - 2 * margin for n in displacement.shape[2:]])
    depth, height, _ = measured.shape
    rows = ROWS if displacement.device.type == "cpu" else height
    for z, y in product(range(0, depth, SLAB), range(0, height, rows)):
        tile = displacement[0, :, z : z + SLAB + 2 * margin, y : y + rows + 2 * margin]
        measured[z : z + SLAB, y : y + rows] = measure(tile)
    return measured


def _central_determinant(slab: Tensor, margin: int) -> Tensor:
    first, second, third = (_edge(slab, _opposite(step), step, margin) / 2 for step in AXES)
    return _dot(first, _cross(second, third))


def _inverted_volume(slab: Tensor) -> Tensor:
    """The volume turned inside out that is charged to each voxel (z - 2, y - 2, x - 2), in voxels."""
    along_x, along_y, along_z = (
        (_edge(slab, CENTER, step, 1), _edge(slab, _opposite(step), CENTER, 1)) for step in AXES
    )
    inverted = torch.zeros_like(along_x[0][0])
    for second, third in product(along_y, along_z):
        normal = _cross(second, third)
        for first in along_x:
            inverted -= _dot(first, normal).clamp(max=0)
    for diagonals in INNER_TETRAHEDRA:
        first, second, third = (_edge(slab, CENTER, diagonal, 1) for diagonal in diagonals)
        inverted -= _dot(first, _cross(second, third)).clamp(max=0)
    # A tetrahedron has a sixth of its determinant, and each of both ways to split a cell counts half.
    return inverted / 12


def _edge(slab: Tensor, start: Offset, end: Offset, margin: int) -> Tensor:
    """The transformed vector (3, z, y, x) between two neighbors of each voxel `margin` inside the slab."""
    edge = _shifted(slab, end, margin) - _shifted(slab, start, margin)
    for component in range(3):
        if end[component] != start[component]:
            edge[component] += end[component] - start[component]
    return edge


def _shifted(slab: Tensor, offset: Offset, margin: int) -> Tensor:
    window = [slice(margin + o, n - margin + o) for o, n in zip(offset[::-1], slab.shape[1:], strict=True)]
    return slab[:, window[0], window[1], window[2]]


def _opposite(offset: Offset) -> Offset:
    return -offset[0], -offset[1], -offset[2]


def _cross(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Tensor, b: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return (a[0] * b[0]).addcmul_(a[1], b[1]).addcmul_(a[2], b[2])


def _inside(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values within the mask, which is as much larger than the values as they were cropped."""
    if mask is None:
        return values
    margins = [(whole - part) // 2 for whole, part in zip(mask.shape, values.shape, strict=True)]
    window = [slice(m, m + n) for m, n in zip(margins, values.shape, strict=True)]
    inside = values[mask.to(values.device).bool()[window[0], window[1], window[2]]]
    if not len(inside):
        raise ValueError("the mask is empty inside the cropped field")
    return inside


def _std_log(determinant: Tensor) -> float:
    return float(determinant.double().clamp(SMALLEST_DETERMINANT, 1e9).log().std(unbiased=False))
