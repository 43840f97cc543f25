"""ConvexAdam: one wide discrete search on a coarse grid, then Adam on the field.

Siebert, Hansen and Heinrich 2021, the winner of Learn2Reg 2021; here on any features of this library.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.convexadam import DiscreteConfig, adam_stage, discrete_stage
from .joined_features import joined_features
from .problem import Problem

DESCRIPTOR_SCALE = 8.0
"""MIND vectors have a length of about two, ours of one: squared distances differ by four, halves by eight."""


def convexadam(problem: Problem, *, block: int = 3, radius: int = 4) -> Tensor:
    """The displacement after both stages.

    Args:
        problem: the pair; the search always starts from no displacement, as published.
        block: feature voxels that are averaged in the discrete search (3 of 4 mm are the published 6 of 2 mm).
        radius: search radius in blocks.

    Returns:
        (1, 3, z, y, x) in voxels of the features.
    """
    with torch.no_grad():
        fixed, moving = joined_features(problem, mind_share=0.0)
    discrete = discrete_stage(
        fixed, moving, DiscreteConfig(block=block, radius=radius, cost_scale=DESCRIPTOR_SCALE)
    )
    problem.progress(0.4)
    return adam_stage(
        fixed,
        moving,
        discrete,
        block=1,
        weight=DESCRIPTOR_SCALE,
        callback=lambda iteration, _: problem.progress(0.4 + 0.6 * (iteration + 1) / 80),
    )
