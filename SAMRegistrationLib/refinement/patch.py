"""A refinement as a small correction that is applied before the accepted map, so that it can be taken back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import RegistrationError
from ..field import DisplacementField, displacement_on
from ..grid import Grid
from ..sampling import voxel_mesh
from ..solvers.filters import smooth
from ..solvers.folding import remove_folds
from ..solvers.ops import smallest_corner_determinant
from ..transforms import AffineTransform, CompositeTransform, Transform

SMALLEST_DETERMINANT = 0.05
"""Of a correction; what is left above 0 is room for rounding and resampling."""

_ROUNDS = 40
_SOFTENED = 0.3
_REACH = 2


@dataclass(frozen=True, eq=False)
class Patch:
    """A correction v of fixed space, after which the accepted map T follows: x -> T(x + v(x)).

    Args:
        kind: what made it: "image", "region" or "landmarks".
        correction: v in mm on a grid of its own; zero at its edge and beyond.
    """

    kind: str
    correction: DisplacementField

    def applied(self, accepted: Transform) -> Transform:
        """The refined map. Where the correction is zero it is the accepted one, to the last bit."""
        return CompositeTransform([self.correction, accepted])


def refined(accepted: Transform, patches: tuple[Patch, ...]) -> Transform:
    """The accepted map under patches, the first of which was made first."""
    for patch in patches:
        accepted = patch.applied(accepted)
    return accepted


def without_new_folds(
    correction: DisplacementField, accepted: Transform, window: Tensor, fixed: Grid
) -> tuple[DisplacementField, float]:
    """Take folds out of a correction, and so much of it that the refined map makes no new ones.

    Where the accepted map hardly leaves room, the correction is softened around that place only.

    Args:
        correction: as it was found.
        accepted: the map that follows it.
        window: (1, 1, z, y, x) on the correction's grid, 0 where nothing may change.
        fixed: the fixed volume's grid; what lies outside does not count.

    Returns:
        The correction, and the share of it that was kept, by its mean length.

    Raises:
        RegistrationError: if even nothing of it would be free of new folds.
    """
    voxels = correction.to_voxels()
    if float(smallest_corner_determinant(voxels).min()) <= SMALLEST_DETERMINANT:
        voxels = remove_folds(voxels, SMALLEST_DETERMINANT) * (window > 0)
    before = folds(accepted, correction.grid, fixed)
    kept = torch.ones_like(voxels[:, :1])
    for round_number in range(_ROUNDS):
        tried = DisplacementField.from_voxels(voxels * kept, correction.grid)
        folded = smallest_corner_determinant(tried.to_voxels()) <= 0
        folded |= folds(CompositeTransform([tried, accepted]), correction.grid, fixed) & ~before
        if not bool(folded.any()):
            return tried, _share(tried, correction)
        kept = kept * (1 - _SOFTENED * _neighborhood(folded, _REACH * (1 + round_number // 4)))
    raise RegistrationError("no refinement was found that does not fold the accepted result")


def folds(transform: Transform, grid: Grid, fixed: Grid) -> Tensor:
    """Which voxels of a grid that lie in the fixed volume have a corner determinant that is not positive.

    Returns:
        (1, 1, z, y, x) bool.
    """
    if isinstance(transform, AffineTransform) or min(grid.size) < 2:
        return torch.zeros((1, 1, *grid.shape), dtype=torch.bool)
    determinant = smallest_corner_determinant(displacement_on(transform, grid).to_voxels())
    return (determinant <= 0) & _inside(grid, fixed)


def _inside(grid: Grid, fixed: Grid) -> Tensor:
    """Voxels of a grid whose neighbors, too, lie in the fixed volume, (z, y, x); beyond, a map just ends."""
    voxel = voxel_mesh(grid.shape, fixed.world_to_voxel @ grid.voxel_to_world)
    reach = np.abs(fixed.world_to_voxel[:3, :3] @ grid.voxel_to_world[:3, :3]).sum(axis=1)
    lower = torch.tensor(reach - 0.5, dtype=torch.float32).view(3, 1, 1, 1)
    upper = torch.tensor(np.asarray(fixed.size) - 0.5 - reach, dtype=torch.float32).view(3, 1, 1, 1)
    return ((voxel >= lower) & (voxel <= upper)).all(dim=0)


def _neighborhood(marked: Tensor, reach: int) -> Tensor:
    """1 at marked voxels and near them, falling smoothly to 0 at about three times the reach."""
    wide = functional.max_pool3d(marked.float(), 2 * reach + 1, stride=1, padding=reach)
    return smooth(wide, 3 * reach).clamp(max=1)


def _share(tried: DisplacementField, correction: DisplacementField) -> float:
    before = float(correction.data.norm(dim=1).sum())
    return float(tried.data.norm(dim=1).sum()) / before if before > 0 else 1.0


def merged(transform: Transform, fixed: Grid) -> Transform:
    """The same map with all its displacement fields, patches among them, as one.

    Linear maps at its end stay for themselves. The field's grid is that of the field that covers the fixed volume,
    divided so that none of its voxels is lost and as fine as the finest patch, but no finer than the fixed volume;
    where none covers it, a grid over the fixed volume. Elsewhere than in a patch, nothing changes but by rounding.

    Args:
        transform: from fixed to moving world.
        fixed: the fixed volume's grid.
    """
    parts = list(transform.transforms) if isinstance(transform, CompositeTransform) else [transform]
    leading: list[DisplacementField] = []
    for part in parts:
        if not isinstance(part, DisplacementField):
            break
        leading.append(part)
    if not leading or (len(leading) == 1 and _covers(leading[0].grid, fixed)):
        return transform
    grid = _common_grid([field.grid for field in leading], fixed)
    total = displacement_on(CompositeTransform(leading), grid)
    return CompositeTransform([total, *parts[len(leading) :]])


def _common_grid(grids: list[Grid], fixed: Grid) -> Grid:
    finest = max(min(min(grid.spacing) for grid in grids), min(fixed.spacing))
    covering = [grid for grid in grids if _covers(grid, fixed)]
    if covering:
        divided = _divided(covering[-1], [max(finest, limit) for limit in fixed.spacing])
        if _covers(divided, fixed):
            return divided
    return fixed.resampled([max(own, finest) for own in fixed.spacing]).padded(1)


def _divided(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The grid with further voxels between its own, which it keeps: a field that is linear there loses nothing."""
    steps = [max(1, math.ceil(own / wanted - 1e-6)) for own, wanted in zip(grid.spacing, spacing, strict=True)]
    size = [(n - 1) * step + 1 for n, step in zip(grid.size, steps, strict=True)]
    return Grid.from_voxel_to_world(size, grid.voxel_to_world @ np.diag([*(1 / np.asarray(steps)), 1]))


def _covers(grid: Grid, fixed: Grid) -> bool:
    """Whether a grid holds every voxel center of the fixed volume."""
    ends = [(0, n - 1) for n in fixed.size]
    corners = fixed.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))
    return bool(grid.contains(corners).all())
