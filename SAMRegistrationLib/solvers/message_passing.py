"""Five levels of 27 shifts with entropy-adaptive message passing.

After the description of VoxelOpt (MICCAI 2025, arXiv 2506.19975): small searches on many levels instead of a wide
one, and a smoothing that spares voxels whose cost volume already has a clear minimum. Each level's solution is
taken as a velocity and integrated, so that the level's displacement is close to invertible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.cost_volume import Measure, displacements
from SAMRegistrationLib.solvers.coupled_convex import (
    COUPLINGS,
    TIE_BREAK,
    Masks,
    MovingFeatures,
    Progress,
    cheapest_shift,
    masked_cost,
    shift_field,
)
from SAMRegistrationLib.solvers.ops import compose, integrate_velocity, upsample, zero_field

LEVELS = 5


@dataclass(frozen=True)
class MessagePassingConfig:
    """The solver of one level.

    Attributes:
        radius: search radius in voxels of the level.
        couplings: see `coupled_convex.solve_level`.
        passes: of message passing, over the cost and over the field after each choice.
        sharpness: factor of the cost in the softmax whose entropy is taken.
        sigma: (least, most) standard deviation of the three-tap messages in voxels, for sure and for unsure
            voxels. VoxelOpt uses (0.1, 0.5) for the smooth features of a segmentation network; noisier ones
            such as MIND want more.
        squarings: of the velocity integration.
        measure: see `cost_volume`.
    """

    radius: int = 1
    couplings: tuple[float, ...] = COUPLINGS
    passes: int = 3
    sharpness: float = 10.0
    sigma: tuple[float, float] = (0.3, 1.5)
    squarings: int = 7
    measure: Measure = Measure.COSINE


@torch.no_grad()
def solve_message_passing(
    fixed_levels: Sequence[torch.Tensor],
    moving_at: MovingFeatures,
    config: MessagePassingConfig | None = None,
    *,
    masks_at: Masks | None = None,
    initial: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Register coarse to fine over any number of levels; see `halved_levels` for making them.

    Args:
        fixed_levels: fixed features per level, coarsest first, each (1, C, z, y, x).
        moving_at: see `coupled_convex.solve_pyramid`.
        config: see `MessagePassingConfig`.
        masks_at: see `coupled_convex.solve_pyramid`.
        initial: displacement to start from, on a grid of any size over the same box.
        progress: called with the finished fraction after each level; may raise to cancel.

    Returns:
        (1, 3, z, y, x) displacement on the grid of the last level, in its voxels.
    """
    config = config or MessagePassingConfig()
    u = zero_field(fixed_levels[0].shape[2:], fixed_levels[0].device) if initial is None else initial
    for level, fixed in enumerate(fixed_levels):
        u = upsample(u, fixed.shape[2:])
        masks = None if masks_at is None else masks_at(level, u)
        cost = masked_cost(fixed, moving_at(level, u), config.radius, config.measure, masks)
        velocity = solve_velocity(cost, config)
        u = compose(integrate_velocity(velocity, config.squarings), u)
        if progress is not None:
            progress((level + 1) / len(fixed_levels))
    return u


def halved_levels(features: torch.Tensor, levels: int = LEVELS, unit: bool = True) -> list[torch.Tensor]:
    """Halve features `levels - 1` times, coarsest first in the result.

    Args:
        features: (1, C, z, y, x), the finest level.
        levels: number of levels; halving stops before a side gets shorter than 4 voxels.
        unit: make the averaged vectors unit vectors again, as `Measure.COSINE` expects.
    """
    result = [features]
    for _ in range(levels - 1):
        shape = [math.ceil(size / 2) for size in result[0].shape[2:]]
        if min(shape) < 4:
            break
        halved = F.interpolate(result[0].float(), size=shape, mode="trilinear", align_corners=False)
        result.insert(0, (F.normalize(halved, dim=1) if unit else halved).to(features.dtype))
    return result


@torch.no_grad()
def solve_velocity(cost: torch.Tensor, config: MessagePassingConfig) -> torch.Tensor:
    """Choose and smooth the shifts of one cost volume, which is smoothed in place.

    Args:
        cost: (1, (2 radius + 1)**3, z, y, x) from `cost_volume`.
        config: see `MessagePassingConfig`.

    Returns:
        (1, 3, z, y, x) float32, in voxels.
    """
    shifts = displacements(config.radius, cost.device)
    share = neighbor_share(doubt(cost, config.sharpness), config.sigma)
    pass_messages(cost, share, config.passes)
    u = zero_field(cost.shape[2:], cost.device)
    for coupling in (TIE_BREAK, *config.couplings):
        u = pass_messages(shift_field(shifts, cheapest_shift(cost, shifts, u, coupling)), share, config.passes)
    return u


def doubt(cost: torch.Tensor, sharpness: float) -> torch.Tensor:
    """How undecided each voxel is, between 0 for the surest and 1 for the least sure voxel, (1, 1, z, y, x).

    Entropy H of softmax(-sharpness * cost) over the shifts, brought to [0, 1] by its extremes in the volume, then
    log2(1 + H).
    """
    logits = cost.float() * -sharpness
    log_total = logits.logsumexp(1, keepdim=True)
    entropy = log_total - (torch.softmax(logits, dim=1).mul_(logits)).sum(1, keepdim=True)
    low, high = entropy.amin(), entropy.amax()
    return torch.log2(1.0 + (entropy - low) / (high - low).clamp(min=1e-12))


def neighbor_share(doubt_map: torch.Tensor, sigma: tuple[float, float]) -> torch.Tensor:
    """Weight of either neighbor in a three-tap Gaussian of the standard deviation that fits the doubt."""
    width = sigma[0] + (sigma[1] - sigma[0]) * doubt_map
    tap = torch.exp(-0.5 / width.square())
    return tap / (1.0 + 2.0 * tap)


def pass_messages(values: torch.Tensor, share: torch.Tensor, passes: int) -> torch.Tensor:
    """Smooth (1, C, z, y, x) in place along z, y and x with each voxel's own neighbor share; borders repeat."""
    channels_at_once = 1 if values.device.type == "cpu" else values.shape[1]
    for chunk in values.split(channels_at_once, dim=1):
        for _ in range(passes):
            for axis in (2, 3, 4):
                _exchange(chunk, share, axis)
    return values


def _exchange(values: torch.Tensor, share: torch.Tensor, axis: int) -> None:
    """v += share * (left + right - 2 v) along one axis."""
    size = values.shape[axis]
    step = values.diff(dim=axis)
    values.narrow(axis, 0, size - 1).add_(step * share.narrow(axis, 0, size - 1))
    values.narrow(axis, 1, size - 1).sub_(step * share.narrow(axis, 1, size - 1))
