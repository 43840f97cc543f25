"""Coupled convex optimization over a cost volume, and the three-level pyramid of SAMConvex.

SAMConvex section 2.2 splits the energy into a pointwise search and a smoothing (equation 3) and alternates them
while the coupling grows. Everything is in voxels here: the published code measures the coupling |v - u|^2 in
units of half the volume, where the given weights have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from SAMRegistrationLib.solvers.cost_volume import Measure, cost_volume, displacements
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.ops import compose, upsample, warp, zero_field

# Where all shifts cost the same (air, masked voxels) the shortest must win; otherwise the first would, a corner.
TIE_BREAK = 1e-4
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RADII = (2, 3, 3)
SMOOTHING_PASSES = 3
VOXELS_PER_CHUNK = {"cpu": 2048, "cuda": 1 << 18}

MovingFeatures = Callable[[int, torch.Tensor], torch.Tensor]
Masks = Callable[[int, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]
Progress = Callable[[float], None]


@torch.no_grad()
def solve_level(
    cost: torch.Tensor,
    radius: int,
    couplings: Sequence[float] = COUPLINGS,
    passes: int = SMOOTHING_PASSES,
) -> torch.Tensor:
    """Minimize cost plus smoothness over the shifts of one cost volume (SAMConvex equation 3).

    u starts as the smoothed cheapest shift (the shortest one among equals); each coupling c then gives
    v = argmin_d cost(d) + c |d - u|^2 and u = smooth(v).

    Args:
        cost: (1, (2 radius + 1)**3, z, y, x) from `cost_volume`.
        radius: search radius in voxels.
        couplings: the growing weights c = 1 / (2 theta), per squared voxel.
        passes: 3x3x3 mean passes of one smoothing.

    Returns:
        (1, 3, z, y, x) displacement in voxels, float32.
    """
    shifts = displacements(radius, cost.device)
    u = zero_field(cost.shape[2:], cost.device)
    rows = _voxel_rows(cost)
    for coupling in (TIE_BREAK, *couplings):
        cheapest = _cheapest(rows, shifts, u, coupling).view(cost.shape[2:])
        u = smooth(shift_field(shifts, cheapest), passes)
    return u


def cheapest_shift(
    cost: torch.Tensor,
    shifts: torch.Tensor | None = None,
    u: torch.Tensor | None = None,
    coupling: float = 0.0,
) -> torch.Tensor:
    """Index of the cheapest shift per voxel, with the coupling to a field if one is given.

    |d - u|^2 = |d|^2 - 2 d.u + |u|^2, and the last term does not change which d is cheapest: the coupled cost is
    a matrix product of rank three added to the cost, taken in chunks of voxels.

    Args:
        cost: (1, K, z, y, x).
        shifts: (K, 3); with u only.
        u: (1, 3, z, y, x) field to stay close to.
        coupling: weight per squared voxel.

    Returns:
        (z, y, x) int64.
    """
    return _cheapest(_voxel_rows(cost), shifts, u, coupling).view(cost.shape[2:])


def _voxel_rows(cost: torch.Tensor) -> torch.Tensor:
    """The costs (voxels, K) of every voxel's shifts."""
    # A CPU finds the smallest of neighbors in memory several times faster.
    rows = cost[0].flatten(1).t()
    return rows.float().contiguous() if cost.device.type == "cpu" else rows


def _cheapest(
    rows: torch.Tensor, shifts: torch.Tensor | None, u: torch.Tensor | None, coupling: float
) -> torch.Tensor:
    """`cheapest_shift` of voxel rows, (voxels,)."""
    chunk = VOXELS_PER_CHUNK.get(rows.device.type, VOXELS_PER_CHUNK["cuda"])
    best = torch.empty(len(rows), dtype=torch.long, device=rows.device)
    if u is not None and shifts is not None:
        # One more row for the part that does not depend on u.
        of_shift = coupling * torch.cat((-2.0 * shifts.t(), shifts.square().sum(1)[None]))
        field = u[0].flatten(1).t()
        of_voxel = torch.cat((field, torch.ones_like(field[:, :1])), dim=1)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk].float()
        if u is not None and shifts is not None:
            part = torch.addmm(part, of_voxel[start : start + chunk], of_shift)
        best[start : start + chunk] = part.contiguous().min(dim=1).indices
    return best


def shift_field(shifts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the displacement (1, 3, z, y, x) of the chosen rows (z, y, x) of the (K, 3) shifts."""
    return shifts.t()[:, indices.flatten()].view(1, 3, *indices.shape)


def warped_features(moving_levels: Sequence[torch.Tensor]) -> MovingFeatures:
    """Return the moving side of `solve_pyramid` that warps given features, one (1, C, z, y, x) per level."""
    return lambda level, u: warp(moving_levels[level], u)


def warped_masks(
    fixed_levels: Sequence[torch.Tensor | None], moving_levels: Sequence[torch.Tensor | None]
) -> Masks:
    """Return the masks of `solve_pyramid` from one (1, 1, z, y, x) mask or None per level and side.

    Positions outside the moving volume count as invalid where it has a mask.
    """

    def masks_at(level: int, u: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        moving = moving_levels[level]
        return fixed_levels[level], None if moving is None else (warp(moving, u, padding="zeros") > 0.5).float()

    return masks_at


def masked_cost(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    radius: int,
    measure: Measure | str,
    masks: tuple[torch.Tensor | None, torch.Tensor | None] | None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`cost_volume` with the masks of one level."""
    fixed_valid, moving_valid = masks or (None, None)
    return cost_volume(
        fixed, moving, radius, measure, fixed_valid=fixed_valid, moving_valid=moving_valid, dtype=dtype
    )


@torch.no_grad()
def solve_pyramid(
    fixed_levels: Sequence[torch.Tensor],
    moving_at: MovingFeatures,
    radii: Sequence[int] = RADII,
    couplings: Sequence[float] = COUPLINGS,
    *,
    passes: int = SMOOTHING_PASSES,
    measure: Measure | str = Measure.COSINE,
    masks_at: Masks | None = None,
    initial: torch.Tensor | None = None,
    cost_type: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Register coarse to fine, composing the solutions of the levels (SAMConvex section 2.4).

    Args:
        fixed_levels: fixed features per level, coarsest first, each (1, C, z, y, x); channels may differ between
            levels.
        moving_at: called as `moving_at(level, u)` with the current displacement u (1, 3, z, y, x) in voxels of
            that level; returns the moving features on the fixed grid as they look after warping by u. Either
            warp features (see `warped_features`) or warp the image and extract again, as the paper does.
        radii: search radius per level, in its voxels.
        couplings: see `solve_level`.
        passes: 3x3x3 mean passes of one smoothing.
        measure: see `cost_volume`.
        masks_at: called like `moving_at`; returns which fixed and which warped moving voxels are valid, each
            (1, 1, z, y, x) or None for all. See `cost_volume` and `warped_masks`.
        initial: displacement to start from, on a grid of any size over the same box.
        cost_type: type of the stored cost volumes; float16 halves their memory.
        progress: called with the finished fraction after each level; may raise to cancel.

    Returns:
        (1, 3, z, y, x) displacement on the grid of the last level, in its voxels.

    Raises:
        ValueError: if the numbers of levels and radii differ.
    """
    if len(radii) != len(fixed_levels):
        raise ValueError(f"{len(fixed_levels)} levels need as many radii, not {len(radii)}")
    u = zero_field(fixed_levels[0].shape[2:], fixed_levels[0].device) if initial is None else initial
    for level, (fixed, radius) in enumerate(zip(fixed_levels, radii, strict=True)):
        if u.shape[2:] != fixed.shape[2:]:
            u = smooth(upsample(u, fixed.shape[2:]), passes)
        masks = None if masks_at is None else masks_at(level, u)
        cost = masked_cost(fixed, moving_at(level, u), radius, measure, masks, cost_type)
        u = compose(solve_level(cost, radius, couplings, passes), u)
        if progress is not None:
            progress((level + 1) / len(fixed_levels))
    return smooth(u, passes)
