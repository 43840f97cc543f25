"""SAMConvex: coarse-to-fine coupled convex optimization on feature correlation volumes.

Li, Tian et al., MICCAI 2023. At every level of an image pyramid the moving volume is warped by what was found
so far, its features are extracted anew, and the rest of the displacement is searched in a small cube.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..solvers.coupled_convex import COUPLINGS, RADII, solve_pyramid
from ..solvers.ops import upsample
from .joined_features import with_mind
from .problem import Problem


def samconvex(
    problem: Problem,
    *,
    radii: Sequence[int] = RADII,
    couplings: Sequence[float] = COUPLINGS,
    smoothing_passes: int = 3,
    skipped_levels: int = 0,
    mind_share: float = 0.0,
) -> Tensor:
    """The displacement after all levels (SAMConvex, sections 2.2 to 2.5).

    Args:
        problem: the pair; a displacement that it already has is where the search starts.
        radii: search radius per level in voxels of the features, coarsest first; each level has twice the
            resolution of the one before.
        couplings: growing weights of the coupling, per squared voxel.
        smoothing_passes: 3x3x3 mean passes in each smoothing.
        skipped_levels: how many of the finest levels are left out; with 0 the last level is the working grid.
        mind_share: share of MIND in the similarity of every level, beside the problem's own features; 0, as
            published, for none.

    Returns:
        (1, 3, z, y, x) in voxels of the features at the last level.
    """
    with torch.inference_mode():
        full = len(radii) - 1 + skipped_levels
        pyramid = image_pyramid(problem.fixed.tensor(), full + 1)[: len(radii)]

        def features(level: int, volume: Tensor) -> Tensor:
            extracted = problem.features_of(volume)
            # The full resolution is matched by fine features alone, as in the released settings.
            own = extracted.fine.data if level == full else extracted.joined().data
            return with_mind(problem, own, volume, mind_share)

        def moving_features(level: int, u: Tensor) -> Tensor:
            return features(level, image_pyramid(problem.warped(u).values, full - level + 1)[0])

        fixed_levels = [features(level, volume) for level, volume in enumerate(pyramid)]
        return solve_pyramid(
            fixed_levels,
            moving_features,
            radii,
            couplings,
            passes=smoothing_passes,
            initial=_start(problem, fixed_levels[0]),
            progress=problem.progress,
        ).clone()


def image_pyramid(volume: Tensor, levels: int) -> list[Tensor]:
    """The volume (1, 1, z, y, x) at `levels` resolutions, coarsest first, each half of the next.

    Blocks of two voxels are averaged, so that every level covers exactly the same box.
    """
    pyramid = [volume]
    for _ in range(levels - 1):
        pyramid.append(functional.avg_pool3d(pyramid[-1], 2))
    return pyramid[::-1]


def _start(problem: Problem, coarsest: Tensor) -> Tensor | None:
    u = problem.displacement
    return None if u is None else upsample(u, tuple(coarsest.shape[2:]))
