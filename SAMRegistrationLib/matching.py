"""Points of one volume found again in another by the likeness of their feature vectors.

A vector says where in the body its voxel is, so the partner is the voxel with the greatest dot product, wherever
it lies: no prior alignment is needed (Yan et al. 2022, section III-D; SAME, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from .errors import InputError, UsageError
from .features.base import FeatureExtractor, FeatureMap, Features
from .grid import FloatArray, Grid
from .image import Image
from .sampling import Interpolation, Outside, sample_points

_CELL = 2
"""Side of the blocks of voxels whose mean vector is searched first."""

_CELLS_KEPT = 12
_QUERIES_AT_ONCE = 256


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


class FeatureIndex:
    """The vectors of a volume, ready to be searched.

    The search goes through the mean vectors of blocks of 2x2x2 voxels first and then through all voxels of the
    best twelve blocks; features change little within a block, so the best voxel is among them.

    Args:
        features: of the volume.
        mask: (z, y, x) bool volume with its geometry; only voxels in it are found. None for everywhere.
    """

    def __init__(self, features: Features, mask: Image | None = None) -> None:
        self.map: FeatureMap = features.joined()
        data = self.map.data[0]
        missing = [-n % _CELL for n in data.shape[1:]]
        padded = functional.pad(data, [0, missing[2], 0, missing[1], 0, missing[0]])
        allowed = torch.ones(data.shape[1:], dtype=torch.bool, device=data.device)
        if mask is not None:
            inside = mask.resampled(self.map.grid, Interpolation.NEAREST, default=0).data.to(data.device) > 0.5
            allowed = inside if bool(inside.any()) else allowed
        allowed = functional.pad(allowed, [0, missing[2], 0, missing[1], 0, missing[0]])
        blocks = _blocks(allowed[None])[..., 0]
        self._cells = blocks.any(dim=1).nonzero()[:, 0]
        self._allowed = blocks[self._cells]
        self._vectors = _blocks(padded)[self._cells]
        self._means = self._vectors.float().mean(dim=1).to(data.dtype)
        self._block_shape = [n // _CELL for n in padded.shape[1:]]

    def vectors_at(self, world_points: ArrayLike) -> Tensor:
        """What to look for to find the partners of world positions (n, 3): see `query_vectors`."""
        return query_vectors(self.map, world_points)

    def nearest(self, queries: Tensor) -> tuple[FloatArray, FloatArray]:
        """World positions (n, 3), below a voxel, of the vectors most like those given (n, C), and scores (n,)."""
        found, scores = [], []
        for chunk in queries.split(_QUERIES_AT_ONCE):
            voxel, score = self._nearest(chunk)
            found.append(voxel)
            scores.append(score)
        if not found:
            return np.empty((0, 3)), np.empty(0)
        world = self.map.grid.to_world(torch.cat(found).double().cpu().numpy())
        return world, torch.cat(scores).double().cpu().numpy()

    def _nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        kept = min(_CELLS_KEPT, len(self._cells))
        cells = (queries @ self._means.T).topk(kept, dim=1).indices
        similarity = torch.einsum("qc,qkvc->qkv", queries, self._vectors[cells]).float()
        similarity = similarity.masked_fill(~self._allowed[cells], -2.0).flatten(1)
        score, best = similarity.max(dim=1)
        cell = self._cells[cells.gather(1, best[:, None] // _CELL**3)[:, 0]]
        voxel = self._voxel_of(cell, best % _CELL**3)
        return voxel + self._peak_offset(queries, voxel, score), score

    def _voxel_of(self, cell: Tensor, corner: Tensor) -> Tensor:
        """Voxel indices (n, 3) as (x, y, z) of the corners of cells."""
        _, height, width = self._block_shape
        z, y, x = cell // (height * width), cell // width % height, cell % width
        return torch.stack([x * _CELL + corner % 2, y * _CELL + corner // 2 % 2, z * _CELL + corner // 4], dim=1)

    def _peak_offset(self, queries: Tensor, voxel: Tensor, score: Tensor) -> Tensor:
        """Where the parabolas through the neighbors' similarities peak, at most half a voxel away (n, 3)."""
        size = torch.tensor(self.map.grid.size, device=voxel.device)
        flat = self.map.data[0].flatten(1)
        offset = torch.zeros(voxel.shape, device=voxel.device)
        for axis in range(3):
            sides = []
            for step in (-1, 1):
                neighbor = voxel.clone()
                neighbor[:, axis] = (neighbor[:, axis] + step).clamp(0, int(size[axis]) - 1)
                x, y, z = neighbor.unbind(1)
                sides.append((queries * flat[:, (z * size[1] + y) * size[0] + x].T).sum(dim=1).float())
            curvature = sides[0] + sides[1] - 2 * score
            peak = (sides[0] - sides[1]) / (2 * curvature.clamp(max=-1e-6))
            interior = (voxel[:, axis] > 0) & (voxel[:, axis] < size[axis] - 1) & (curvature < -1e-6)
            offset[:, axis] = torch.where(interior, peak.clamp(-0.5, 0.5), 0.0)
        return offset


def require_matchable(points_world: ArrayLike, fixed: Grid, extractor: FeatureExtractor) -> None:
    """Check that points can be matched before features are computed.

    Args:
        points_world: (n, 3) in the fixed world, LPS mm.
        fixed: grid of the fixed volume.
        extractor: of the features.

    Raises:
        InputError: if a point lies outside the fixed volume.
        UsageError: if the features cannot find points.
    """
    points = np.asarray(points_world, dtype=np.float64)
    outside = int((~fixed.contains(points)).sum())
    if outside:
        raise InputError(f"{outside} of {len(points)} points lie outside the fixed volume")
    if extractor.name == "mind":
        raise UsageError("MIND only describes what is near, so it cannot find points; match with embeddings")


def query_vectors(features: FeatureMap, world_points: ArrayLike) -> Tensor:
    """Unit vectors (n, C) that name world positions (n, 3) to another volume.

    Linearly interpolated, then averaged over the voxel's 3x3x3 neighborhood: the mean depends less on the noise of
    one voxel, and 7 % more matches between people fall into the same organ.
    """
    voxel = torch.from_numpy(features.grid.to_voxel(world_points)).float().to(features.data.device)
    around = [voxel + voxel.new_tensor(step) for step in product((-1.0, 0.0, 1.0), repeat=3)]
    total = sample_points(features.data, around[0], Outside.EDGE).float()
    for neighbor in around[1:]:
        total += sample_points(features.data, neighbor, Outside.EDGE)
    return functional.normalize(total, dim=1).to(features.data.dtype)


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
    source, target = _index(fixed, fixed_mask), _index(moving, moving_mask)
    if source.map.channels != target.map.channels:
        raise ValueError(f"features of {source.map.channels} and of {target.map.channels} channels cannot match")
    points = np.asarray(points_world, dtype=np.float64).reshape(-1, 3)
    with torch.no_grad():
        matched, score = target.nearest(source.vectors_at(points))
        returned, _ = source.nearest(target.vectors_at(matched))
    return Matches(points, matched, score, np.linalg.norm(returned - points, axis=1))


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
    voxel = float(np.mean(fixed.map.grid.spacing))
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


def _index(features: Features | FeatureIndex, mask: Image | None) -> FeatureIndex:
    return features if isinstance(features, FeatureIndex) else FeatureIndex(features, mask)


def _blocks(volume: Tensor) -> Tensor:
    """A volume (C, z, y, x) of even sizes as blocks (blocks, 8, C) of 2x2x2 voxels."""
    channels, *shape = volume.shape
    z, y, x = (n // _CELL for n in shape)
    split = volume.reshape(channels, z, _CELL, y, _CELL, x, _CELL)
    return split.permute(1, 3, 5, 2, 4, 6, 0).reshape(z * y * x, _CELL**3, channels)
