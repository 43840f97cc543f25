"""One wide search in both directions at once: the robust start of a deformable registration.

The discrete stage of ConvexAdam (Siebert et al. 2021) on the problem's own features joined with MIND. A shift that
the search in the opposite direction does not confirm is averaged away, which keeps organs that only one of the two
scans shows from pulling their neighbors along.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.convexadam import DiscreteConfig, average_blocks, discrete_stage
from ..solvers.ops import upsample
from .joined_features import joined_features
from .problem import Problem, at_shape

DESCRIPTOR_SCALE = 4.0
"""Factor of the cost of joined unit vectors, whose distances are small against the couplings."""


def convex_search(problem: Problem, *, block: int = 3, radius: int = 4, mind_share: float = 0.6) -> Tensor:
    """The displacement that both directions agree on, from no displacement; what either lacks is left out.

    Args:
        problem: the pair.
        block: feature voxels that are averaged along each axis; 3 of 4 mm are ConvexAdam's 6 of 2 mm.
        radius: search radius in blocks.
        mind_share: share of MIND in the similarity, beside the problem's own features; 0 for none.

    Returns:
        (1, 3, z, y, x) in voxels of the features.
    """
    with torch.inference_mode():
        shape = tuple(problem.fixed_features().fine.data.shape[2:])
        # Averaged before they are joined: neither volume's long vectors exist at full resolution twice.
        fixed, moving = joined_features(problem, mind_share, block)
        fixed_mask, moving_mask = (
            None if mask is None else average_blocks(at_shape(mask, shape), block) for mask in problem.masks()
        )
        if moving_mask is not None:
            # What the moving volume does not show would be pulled to where it ends; the rest takes it along.
            fixed_mask = moving_mask if fixed_mask is None else fixed_mask * moving_mask
        config = DiscreteConfig(block=1, radius=radius, cost_scale=DESCRIPTOR_SCALE)
        found = upsample(discrete_stage(fixed, moving, config, (fixed_mask, moving_mask)), shape)
    problem.progress(1.0)
    return found.clone()
