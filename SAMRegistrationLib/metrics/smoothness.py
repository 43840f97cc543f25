"""How smooth and how invertible a displacement field is.

Fields are in voxels, (1, 3, z, y, x) with components x, y, z; determinants do not depend on the spacing. All
measures work through the volume in slabs, in double precision, so that memory stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

LEARN2REG_CROP = 2
LEARN2REG_SHIFT = 3.0
SMALLEST_DETERMINANT = 1e-9
SLAB = 8


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
    return torch.cat(_by_slabs(displacement, margin, lambda slab: _central_determinant(slab, margin)))


def non_diffeomorphic_volume(displacement: Tensor, mask: Tensor | None = None) -> float:
    """NDV: the volume that the digital transformation turns inside out, in percent of the (masked) volume.

    Every cell between eight voxels splits into five tetrahedra in two ways; half of each negative tetrahedron
    counts. (Y. Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV
    2024; cropped by one voxel as in the LUMIR challenge.)

    Raises:
        ValueError: if the field has fewer than three voxels along an axis, or the mask is empty.
    """
    volumes = torch.cat(_by_slabs(displacement, 1, _inverted_volume))
    return 100 * float(_inside(volumes, mask).mean())


def _by_slabs(displacement: Tensor, margin: int, measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Apply a measure that loses `margin` voxels per side to overlapping slabs along z."""
    depth = displacement.shape[2]
    if min(displacement.shape[2:]) < 2 * margin + 1:
        raise ValueError(f"a field of {tuple(displacement.shape[2:])} voxels is too small to be measured")
    starts = range(margin, depth - margin, SLAB)
    return [
        measure(displacement[0, :, z - margin : min(z + SLAB, depth - margin) + margin].double()) for z in starts
    ]


def _central_determinant(slab: Tensor, margin: int) -> Tensor:
    steps = [
        (_shifted(slab, unit, margin) - _shifted(slab, opposite, margin)) / 2 for unit, opposite in _axis_pairs()
    ]
    return _determinant([_plus_identity(step, axis) for axis, step in enumerate(steps)])


def _inverted_volume(slab: Tensor) -> Tensor:
    """The volume turned inside out that is charged to each voxel (z - 2, y - 2, x - 2), in voxels."""
    center = _shifted(slab, (0, 0, 0), 1)
    ahead = [
        _plus_identity(_shifted(slab, unit, 1) - center, axis) for axis, (unit, _) in enumerate(_axis_pairs())
    ]
    behind = [
        _plus_identity(center - _shifted(slab, back, 1), axis) for axis, (_, back) in enumerate(_axis_pairs())
    ]
    corners = product(*zip(ahead, behind, strict=True))
    inner = ([_to_diagonal(slab, center, offset) for offset in _face_diagonals(sign)] for sign in (1, -1))
    inverted = torch.zeros_like(center[0])
    for edges in (*corners, *inner):
        inverted -= _determinant(edges).clamp(max=0)
    # A tetrahedron has a sixth of its determinant, and each of both ways to split a cell counts half.
    return inverted / 12


def _axis_pairs() -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """The unit steps (x, y, z) along and against each axis."""
    return [((1, 0, 0), (-1, 0, 0)), ((0, 1, 0), (0, -1, 0)), ((0, 0, 1), (0, 0, -1))]


def _face_diagonals(sign: int) -> list[tuple[int, int, int]]:
    """The three face diagonals (x, y, z) that span an inner tetrahedron, ordered to be right-handed."""
    ordered = [(1, 1, 0), (0, 1, 1), (1, 0, 1)]
    return ordered if sign > 0 else [(-x, -y, -z) for x, y, z in reversed(ordered)]


def _to_diagonal(slab: Tensor, center: Tensor, offset: tuple[int, int, int]) -> Tensor:
    edge = _shifted(slab, offset, 1) - center
    return edge + torch.tensor(offset, dtype=edge.dtype, device=edge.device).view(3, 1, 1, 1)


def _shifted(slab: Tensor, offset: tuple[int, int, int], margin: int) -> Tensor:
    """The values (3, z, y, x) at an offset (x, y, z) from each voxel that lies `margin` inside the slab."""
    window = [slice(margin + o, n - margin + o) for o, n in zip(offset[::-1], slab.shape[1:], strict=True)]
    return slab[:, window[0], window[1], window[2]]


def _plus_identity(gradient: Tensor, axis: int) -> Tensor:
    unit = torch.zeros(3, 1, 1, 1, dtype=gradient.dtype, device=gradient.device)
    unit[axis] = 1
    return gradient + unit


def _determinant(columns: Sequence[Tensor]) -> Tensor:
    first, second, third = columns
    return (first * torch.linalg.cross(second, third, dim=0)).sum(dim=0)


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
    return float(determinant.clamp(SMALLEST_DETERMINANT, 1e9).log().std(unbiased=False))
