"""Points matched one by one: the partner is the voxel of greatest likeness, wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from ..features.base import FeatureExtractor, Features
from ..grid import FloatArray
from ..image import Image
from .index import FeatureIndex
from .kept import indexed


@dataclass(frozen=True, eq=False)
class Matches:
    """Points and their partners.

    Args:
        points: (n, 3) in the fixed world, LPS mm.
        matched: (n, 3) in the moving world.
        score: (n,) cosine similarity, the mean of fine and coarse.
        cycle_error: (n,) distance in mm between a point and the partner of its partner.
    """

    points: FloatArray
    matched: FloatArray
    score: FloatArray
    cycle_error: FloatArray

    def __len__(self) -> int:
        return len(self.points)

    def select(self, keep: NDArray[Any]) -> Matches:
        """The matches chosen by a boolean array or by indices."""
        return Matches(self.points[keep], self.matched[keep], self.score[keep], self.cycle_error[keep])


def require_embeddings(extractor: FeatureExtractor) -> None:
    """Raise UsageError if the features of an extractor cannot find points."""
    if extractor.name == "mind":
        raise UsageError("MIND only describes what is near, so it cannot find points; match with embeddings")


def match_points(
    points_world: ArrayLike,
    fixed: Features | FeatureIndex,
    moving: Features | FeatureIndex,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
) -> Matches:
    """The partner of every point, and how far the partner's partner is from it.

    Args:
        points_world: (n, 3) in the fixed world, LPS mm.
        fixed: features of the fixed volume.
        moving: features of the moving volume, of the same extractor.
        fixed_mask: where partners of partners are looked for.
        moving_mask: where partners are looked for.

    Raises:
        ValueError: if the features have different numbers of channels.
    """
    source, target = indexed(fixed, fixed_mask), indexed(moving, moving_mask)
    points = np.asarray(points_world, dtype=np.float64).reshape(-1, 3)
    matched, score = partners(points, source, target)
    return Matches(points, matched, score, cycle_errors(points, matched, source, target))


def partners(points: FloatArray, source: FeatureIndex, target: FeatureIndex) -> tuple[FloatArray, FloatArray]:
    """The partner of every world position (n, 3) of the source, and the likeness (n,) of the two.

    Raises:
        ValueError: if the features have different numbers of channels.
    """
    channels = source.vectors.channels, target.vectors.channels
    if channels[0] != channels[1]:
        raise ValueError(f"features of {channels[0]} and of {channels[1]} channels cannot match")
    with torch.no_grad():
        return target.nearest(source.vectors_at(points))


def cycle_errors(
    points: FloatArray, matched: FloatArray, source: FeatureIndex, target: FeatureIndex
) -> FloatArray:
    """Distance in mm (n,) between points of the source and the partners of their partners (n, 3)."""
    with torch.no_grad():
        returned, _ = source.nearest(target.vectors_at(matched))
    return np.asarray(np.linalg.norm(returned - points, axis=1))


def stable_matches(points_world: ArrayLike, fixed: FeatureIndex, moving: FeatureIndex, cycles: int = 5) -> Matches:
    """Matches that stay where they are when looked up back and forth (SAME++, stable sampling).

    Every point moves to the partner of its partner, `cycles` times; kept are those that end up moving by less than
    one voxel of the fine features, each pair once. A point at rest is left alone, which saves most of the work.

    Args:
        points_world: (n, 3) where to begin, in the fixed world.
        fixed: of the fixed volume.
        moving: of the moving volume.
        cycles: number of rounds.
    """
    voxel = float(np.mean(fixed.grid.spacing))
    points = np.array(points_world, dtype=np.float64).reshape(-1, 3)
    matched, score = np.empty_like(points), np.empty(len(points))
    moved = np.full(len(points), np.inf)
    with torch.no_grad():
        for _ in range(cycles):
            # Points that came to rest stay where they are.
            active = moved >= voxel
            if not active.any():
                break
            matched[active], score[active] = moving.nearest(fixed.vectors_at(points[active]))
            returned, _ = fixed.nearest(moving.vectors_at(matched[active]))
            moved[active] = np.linalg.norm(returned - points[active], axis=1)
            points[active] = np.where((moved[active] >= voxel)[:, None], returned, points[active])
    stable = Matches(points, matched, score, moved).select(moved < voxel)
    cell = np.rint(np.concatenate([stable.points, stable.matched], axis=1) / voxel)
    _, first = np.unique(cell, axis=0, return_index=True)
    return stable.select(np.sort(first))
