"""Many small searches instead of a few wide ones: five levels of 27 shifts with adaptive message passing.

After the description of VoxelOpt (MICCAI 2025, arXiv 2506.19975), on whatever features the problem has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..solvers.coupled_convex import COUPLINGS, warped_masks
from ..solvers.folding import remove_folds
from ..solvers.message_passing import MessagePassingConfig, halved_levels, solve_message_passing
from ..solvers.ops import warp
from .joined_features import joined_features
from .problem import Problem, at_shape


def message_passing(
    problem: Problem,
    *,
    radii: Sequence[int] = (1, 1, 1, 1, 1),
    coupling_scale: float = 1.0,
    mind_share: float = 0.0,
    sigma: Sequence[float] = (0.1, 0.5),
) -> Tensor:
    """The displacement after all levels, free of folds; features are extracted once and warped at every level.

    Args:
        problem: the pair; a displacement that it already has is where the search starts.
        radii: search radius at each level in its voxels, coarsest first; each level has twice the resolution of
            the one before, and the last is that of the features.
        coupling_scale: factor of the couplings; cosine distances of embeddings vary less than the published
            costs, and want weaker ones.
        sigma: standard deviation of the messages in voxels, for sure and for unsure voxels.
        mind_share: share of MIND in the similarity, beside the problem's own features; 0 for none.

    Returns:
        (1, 3, z, y, x) in voxels of the finest features.
    """
    with torch.inference_mode():
        fixed, moving = (halved_levels(features, len(radii)) for features in joined_features(problem, mind_share))
        # Thin volumes have fewer levels.
        radii = radii[-len(fixed) :]
        masks = [
            [None if mask is None else at_shape(mask, tuple(features.shape[2:])) for features in fixed]
            for mask in problem.masks()
        ]
        u = problem.displacement
        for level, radius in enumerate(radii):
            couplings = tuple(coupling * coupling_scale for coupling in COUPLINGS)
            u = solve_message_passing(
                fixed[level : level + 1],
                lambda _, u, level=level: functional.normalize(warp(moving[level], u), dim=1),  # type: ignore[misc]
                MessagePassingConfig(radius=radius, couplings=couplings, sigma=(sigma[0], sigma[1])),
                masks_at=warped_masks(masks[0][level : level + 1], masks[1][level : level + 1]),
                initial=u,
            )
            problem.progress((level + 1) / len(radii))
    assert u is not None
    return remove_folds(u).clone()
