"""Many small searches instead of a few wide ones: five levels of 27 shifts with adaptive message passing.

After the description of VoxelOpt (MICCAI 2025, arXiv 2506.19975), on whatever features the problem has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.message_passing import MessagePassingConfig, halved_levels, solve_message_passing
from ..solvers.ops import warp
from .problem import Problem


def message_passing(problem: Problem, *, levels: int = 5, radius: int = 1) -> Tensor:
    """The displacement after all levels; features are extracted once and warped from level to level.

    Args:
        problem: the pair; a displacement that it already has is where the search starts.
        levels: number of resolutions, each half of the next; the finest is that of the features.
        radius: search radius in voxels of each level.

    Returns:
        (1, 3, z, y, x) in voxels of the finest features.
    """
    with torch.inference_mode():
        fixed, moving = (problem.features_of(volume).joined().data for volume in problem.volumes())
        fixed_levels, moving_levels = halved_levels(fixed, levels), halved_levels(moving, levels)
        return solve_message_passing(
            fixed_levels,
            lambda level, u: torch.nn.functional.normalize(warp(moving_levels[level], u), dim=1),
            MessagePassingConfig(radius=radius),
            initial=problem.displacement,
            progress=problem.progress,
        ).clone()
