"""Two displacements of one pair made into one.

The loss of a whole field says little about a place in it. Two fields often differ by a hundredth in their loss, of
which most is smoothness, while each is right about organs that the other has missed. Where both lie near each
other the features decide, place by place. Where they lie far apart, one of them mistakes an organ for another, and
nothing between them is right. Where one of them leads to what was not measured, there is nothing to compare. In
both cases the field with the lower loss is kept.
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

_NEAR = 6.0
"""Distance of both fields in voxels at which features decide by a third, and the loss of the whole by the rest."""

_TRANSITION = 3
"""Mean passes over the distance and the shares, so that neighbors do not follow different fields."""


@dataclass(frozen=True)
class Compared:
    """Features of both volumes on one grid, and what their cosine distance weighs.

    Args:
        fixed: (1, C, z, y, x).
        moving: the same shape, not displaced.
        weight: of their distance.
    """

    fixed: Tensor
    moving: Tensor
    weight: float


@torch.no_grad()
def blended(
    first: Tensor,
    second: Tensor,
    features: Iterable[Compared],
    known: Tensor | None,
    *,
    first_is_better: bool,
) -> tuple[Tensor, Tensor]:
    """A displacement that follows, place by place, the one of two under which the features agree better.

    Args:
        first: (1, 3, z, y, x) displacement in voxels of its grid.
        second: the same shape.
        features: what agrees more or less, on the grid of the displacements.
        known: (1, 1, z, y, x), 1 where both volumes have data under both displacements, None for everywhere.
        first_is_better: as a whole; followed where the two lie far apart or lead to what is not known.

    Returns:
        The displacement, and how much of it is the first one (1, 1, z, y, x), between 0 and 1.
    """
    features = list(features)
    costs = [smooth(_cost(u, features, known), _AROUND) for u in (first, second)]
    typical = (0.5 * (costs[0] + costs[1])).clamp_(min=1e-9)
    better = torch.sigmoid((costs[1] - costs[0]) / (_CLEAR * typical))
    distance = smooth((first - second).norm(dim=1, keepdim=True), _TRANSITION)
    decided = torch.exp(-((distance / _NEAR) ** 2))
    if known is not None:
        decided = decided * smooth(known, _TRANSITION)
    share = smooth(decided * better + (1.0 - decided) * float(first_is_better), _TRANSITION)
    return share * first + (1.0 - share) * second, share


def _cost(u: Tensor, features: list[Compared], known: Tensor | None) -> Tensor:
    """The weighted cosine distances of every voxel (1, 1, z, y, x), 0 where nothing is known."""
    total = u.new_zeros((1, 1, *u.shape[2:]))
    for pair in features:
        displaced = warp(pair.moving, upsample(u, pair.fixed.shape[2:]))
        cosine = functional.cosine_similarity(pair.fixed.float(), displaced.float(), dim=1)[:, None]
        total += pair.weight * (1.0 - cosine)
    return total if known is None else total * known
