"""Two displacements of one pair made into one: each where the features agree better under it.

The loss of a whole field says little about a place in it. Two fields often differ by a hundredth in their loss, of
which most is smoothness, while each is right about organs that the other has missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..solvers.filters import smooth
from ..solvers.ops import upsample, warp

_AROUND = 6
"""Mean passes over the costs: a place is judged together with what lies within some four voxels."""

_CLEAR = 0.02
"""By what share costs must differ for one field to count about three times as much as the other."""

_TRANSITION = 3
"""Mean passes over the shares, so that neighbors do not follow different fields."""


@dataclass(frozen=True)
class Compared:
    """Features of both volumes on one grid, and what their cosine distance weighs.

    Args:
        fixed: (1, C, z, y, x).
        moving: the same shape, not displaced.
        weight: of their distance.
        lattice: every so many voxels along each axis are looked at in an iteration of a descent.
    """

    fixed: Tensor
    moving: Tensor
    weight: float
    lattice: int


@torch.no_grad()
def blended(
    first: Tensor, second: Tensor, features: Iterable[Compared], voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A displacement that follows, place by place, the one under which the features agree better.

    Args:
        first: (1, 3, z, y, x) displacement in voxels of its grid.
        second: the same shape.
        features: what agrees more or less, on the grid of the displacements.
        voxel_weight: (1, 1, z, y, x), which voxels count, None for all.

    Returns:
        The displacement, and how much of it is the first one (1, 1, z, y, x), between 0 and 1.
    """
    features = list(features)
    costs = [smooth(_cost(u, features, voxel_weight), _AROUND) for u in (first, second)]
    typical = (0.5 * (costs[0] + costs[1])).clamp_(min=1e-9)
    share = smooth(torch.sigmoid((costs[1] - costs[0]) / (_CLEAR * typical)), _TRANSITION)
    return share * first + (1.0 - share) * second, share


def _cost(u: Tensor, features: list[Compared], voxel_weight: Tensor | None) -> Tensor:
    """The weighted cosine distances of every voxel (1, 1, z, y, x)."""
    total = u.new_zeros((1, 1, *u.shape[2:]))
    for pair in features:
        displaced = warp(pair.moving, upsample(u, pair.fixed.shape[2:]))
        cosine = functional.cosine_similarity(pair.fixed.float(), displaced.float(), dim=1)[:, None]
        total += pair.weight * (1.0 - cosine)
    return total if voxel_weight is None else total * voxel_weight
