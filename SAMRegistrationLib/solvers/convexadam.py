"""The two stages of ConvexAdam: one wide discrete search on a coarse grid, then Adam on the field.

After Siebert et al. 2021, "Fast 3D registration with accurate optimisation and little learning for Learn2Reg
2021" (ConvexAdam). Both stages work on features that were averaged over blocks of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.cost_volume import Measure, cost_volume
from SAMRegistrationLib.solvers.coupled_convex import COUPLINGS, solve_level
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.instance_optimization import Callback, OptimizationConfig, optimize
from SAMRegistrationLib.solvers.inverse_consistency import ITERATIONS, make_inverse_consistent
from SAMRegistrationLib.solvers.ops import upsample
from SAMRegistrationLib.solvers.terms import FeatureTerm


@dataclass(frozen=True)
class DiscreteConfig:
    """The discrete stage.

    Attributes:
        block: features are averaged over blocks of this many voxels.
        radius: search radius in blocks.
        cost_passes: 3x3x3 mean passes over the cost volume.
        passes: over the field after each coupling.
        couplings: see `solve_level`.
        inverse_iterations: of the symmetric constraint; 0 searches in one direction only.
        measure: see `cost_volume`.
        cost_scale: factor of the cost, relative to which the couplings count.
    """

    block: int = 6
    radius: int = 4
    cost_passes: int = 2
    passes: int = 1
    couplings: tuple[float, ...] = COUPLINGS
    inverse_iterations: int = ITERATIONS
    measure: Measure = Measure.SQUARED
    cost_scale: float = 1.0


ADAM_BLOCK = 2
ADAM_CONFIG = OptimizationConfig(
    iterations=80,
    learning_rate=1.0,
    final_rate=1.0,
    control_spacing=1,
    diffusion=1.25,
    folding=0.0,
    tolerance=0.0,
)


@torch.no_grad()
def discrete_stage(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    config: DiscreteConfig | None = None,
    masks: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> torch.Tensor:
    """Search all shifts of +-radius blocks at once, in both directions.

    Args:
        fixed: (1, C, z, y, x) features.
        moving: features on the same grid.
        config: see `DiscreteConfig`.
        masks: which fixed and which moving voxels count, (1, 1, z, y, x) on the same grid each, None for all; a
            block counts if half of it does.

    Returns:
        (1, 3, z, y, x) displacement on the grid of the features, in its voxels.
    """
    config = config or DiscreteConfig()
    shape = fixed.shape[2:]
    fixed, moving = average_blocks(fixed, config.block), average_blocks(moving, config.block)
    fixed_valid, moving_valid = (
        None if mask is None else (average_blocks(mask, config.block) >= 0.5).float() for mask in masks
    )
    forward = _search(fixed, moving, config, fixed_valid, moving_valid)
    if config.inverse_iterations > 0:
        backward = _search(moving, fixed, config, moving_valid, fixed_valid)
        forward, _ = make_inverse_consistent(forward, backward, config.inverse_iterations)
    return upsample(forward, shape)


def _search(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    config: DiscreteConfig,
    fixed_valid: torch.Tensor | None,
    moving_valid: torch.Tensor | None,
) -> torch.Tensor:
    cost = cost_volume(
        fixed, moving, config.radius, config.measure, fixed_valid=fixed_valid, moving_valid=moving_valid
    )
    cost = smooth(cost, config.cost_passes).mul_(config.cost_scale)
    return solve_level(cost, config.radius, config.couplings, config.passes)


def average_blocks(features: torch.Tensor, block: int) -> torch.Tensor:
    """Average over blocks; sizes that are no multiple get slightly overlapping blocks and keep their box."""
    if block == 1:
        return features
    shape = [max(1, round(size / block)) for size in features.shape[2:]]
    if features.device.type == "cpu" and not features.is_contiguous():
        # Torch would reorder all of them first, which takes ten times as long.
        for axis, size in enumerate(shape):
            features = _averaged(features, 2 + axis, size)
        return features
    return F.adaptive_avg_pool3d(features.float(), (shape[0], shape[1], shape[2])).to(features.dtype)


def _averaged(features: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Means over `size` parts of one axis, as adaptive average pooling divides it, in the same order of memory."""
    length = features.shape[axis]
    ends = [(part * length // size, -(-(part + 1) * length // size)) for part in range(size)]
    last = features.movedim(1, -1)
    means = last.new_empty([size if dim == axis - 1 else n for dim, n in enumerate(last.shape)])
    for part, (first, end) in enumerate(ends):
        means.select(axis - 1, part).copy_(last.narrow(axis - 1, first, end - first).mean(axis - 1))
    return means.movedim(-1, 1)


def adam_stage(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    initial: torch.Tensor,
    config: OptimizationConfig = ADAM_CONFIG,
    *,
    block: int = ADAM_BLOCK,
    measure: Measure = Measure.SQUARED,
    weight: float = 1.0,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Refine a field by Adam on block-averaged features.

    Args:
        fixed: (1, C, z, y, x) features.
        moving: features on the same grid.
        initial: (1, 3, z, y, x) displacement in voxels of that grid, for instance from `discrete_stage`.
        config: see `OptimizationConfig`; lengths are in blocks.
        block: voxels averaged along each axis.
        measure: see `FeatureTerm`.
        weight: of the feature term against the regularization.
        callback: see `optimize`.

    Returns:
        (1, 3, z, y, x) displacement on the grid of the features, in its voxels.
    """
    shape: Sequence[int] = fixed.shape[2:]
    fixed, moving = average_blocks(fixed, block), average_blocks(moving, block)
    term = FeatureTerm(fixed, moving, weight, lattice=1, measure=measure)
    result = optimize(upsample(initial, fixed.shape[2:]), [term], config, callback)
    return upsample(result.u, shape)
