"""Searches of a feature index that stay near a place where the partner is expected."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..grid import Grid
from .chunks import AtOnce
from .index import FeatureIndex
from .peak import peak_offset

RADIUS_MM = 12.0
"""How far from where it is expected a partner is looked for."""

MOST_VOXELS = 4
"""A search reaches at most so many voxels to each side of where a partner is expected."""

MOST_VOXELS_OF_REACH = 8

TEMPERATURE = 0.05
"""Difference of cosine similarity that weighs as much as one unit of log-probability."""

_NARROWEST_MM, _WIDEST_MM = 1.0, 100.0
_VALUES_AT_ONCE = AtOnce(cpu=2**22, elsewhere=2**24)
"""Vectors that stay in the processor's cache until they are compared: a fifth faster."""


def most_similar_near(
    index: FeatureIndex, queries: Tensor, expected: Tensor, centers: Tensor, reach_mm: float
) -> tuple[Tensor, Tensor]:
    """World positions below a voxel most like the vectors of neighbors, each near where it is expected.

    The neighbors of a point share one window, so that its vectors are read once.

    Args:
        index: of the volume searched.
        queries: (n, k, C) unit vectors of k neighbors of n points.
        expected: (n, k, 3) world positions in mm; searched is the cube of `RADIUS_MM` around each.
        centers: (n, 3) world positions of the points in mm.
        reach_mm: how far neighbors may be expected from their point, along an axis; drawn nearer where farther.

    Returns:
        Positions (n, k, 3), and whether there was any voxel to be found (n, k).
    """
    grid = index.grid
    radius = _in_voxels(RADIUS_MM, grid, MOST_VOXELS)
    reach = _in_voxels(reach_mm, grid, MOST_VOXELS_OF_REACH)
    side = 2 * (reach + radius) + 1
    center = _nearest_voxels(grid, centers)
    step = (_nearest_voxels(grid, expected) - center[:, None]).clamp(-reach, reach)
    near = _offsets(radius, center.device)
    cells = _flat(step + reach + radius, side)[..., None] + _flat(near, side)
    similarity, allowed = [], []
    at_once = _at_once(side**3 * max(queries.shape[1:]), queries)
    for query, middle, cell in zip(*(values.split(at_once) for values in (queries, center, cells)), strict=True):
        alike, may = _likeness(index, query, middle, reach + radius)
        similarity.append(alike.gather(2, cell))
        allowed.append(may[:, None].expand(alike.shape).gather(2, cell))
    may = torch.cat(allowed).flatten(0, 1)
    alike = torch.cat(similarity).flatten(0, 1).masked_fill(~may, -2.0)
    best = alike.argmax(dim=1)
    voxel = (center[:, None] + step).flatten(0, 1) + near[best] + _peak(alike, may, best, radius)
    return _to_world(grid, voxel).view(expected.shape), may.any(dim=1).view(expected.shape[:2])


def expected_positions(
    index: FeatureIndex, queries: Tensor, predicted: Tensor, width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean place of the partner, given its vector and a prediction.

    Every voxel of a window around the prediction is weighed by its likeness to the vector and by a Gaussian of its
    distance from the prediction.

    Args:
        index: of the volume searched.
        queries: (n, C) unit vectors.
        predicted: (n, 3) world positions in mm.
        width: (n,) standard deviation of the Gaussian in mm; zero leaves the prediction as it is.

    Returns:
        World positions (n, 3) in mm; the cosine similarity there (n,); whether the window has any voxel of the
        volume and its mask (n,).
    """
    if len(queries) == 0:
        return predicted, width, width > 0
    grid = index.grid
    center = _nearest_voxels(grid, predicted)
    offsets = _offsets(MOST_VOXELS, center.device)
    similarity, allowed = [], []
    at_once = _at_once(len(offsets) * index.vectors.channels, queries)
    for query, middle in zip(queries.split(at_once), center.split(at_once), strict=True):
        alike, may = _likeness(index, query[:, None], middle, MOST_VOXELS)
        similarity.append(alike[:, 0])
        allowed.append(may)
    may = torch.cat(allowed)
    positions = _to_world(grid, center[:, None] + offsets)
    distance = (positions - predicted[:, None]).norm(dim=-1)
    prior = -(distance / width[:, None].clamp(_NARROWEST_MM, _WIDEST_MM)).square() / 2
    evidence = (torch.cat(similarity).double() / TEMPERATURE + prior).masked_fill(~may, -1e9)
    # What the vector adds: a narrow Gaussian alone has its mean at a voxel's center, not at its own.
    shift = _weighted_mean(evidence, positions) - _weighted_mean(prior, positions)
    place = torch.where(width[:, None] > 0, predicted + shift, predicted)
    score = (queries.float() * index.vectors_at(place.cpu().numpy()).float()).sum(dim=1).double()
    return place, score, may.any(dim=1)


def _weighted_mean(logarithm: Tensor, positions: Tensor) -> Tensor:
    return (logarithm.softmax(dim=1)[..., None] * positions).sum(dim=1)


def _at_once(values: int, queries: Tensor) -> int:
    """How many points are looked up together when each takes so many values."""
    return max(1, _VALUES_AT_ONCE.on(queries.device) // values)


def _in_voxels(distance_mm: float, grid: Grid, most: int) -> int:
    return int(np.clip(np.ceil(distance_mm / np.mean(grid.spacing)), 1, most))


def _likeness(index: FeatureIndex, queries: Tensor, center: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Similarity (n, k, w) of vectors (n, k, C) to voxels around centers, and which may be found (n, w)."""
    vectors, allowed = index.vectors_around(center, radius)
    if vectors.device.type == "cpu":
        # Products of half precision are slow on a CPU.
        queries, vectors = queries.float(), vectors.float()
    return torch.bmm(queries, vectors.transpose(1, 2)).float(), allowed


def _flat(voxel: Tensor, side: int) -> Tensor:
    """Indices (...) in a flattened cube of voxels (..., 3), as (x, y, z); GPUs multiply no whole matrices."""
    x, y, z = voxel.unbind(-1)
    return (z * side + y) * side + x


def _offsets(radius: int, device: torch.device) -> Tensor:
    """(w, 3) whole steps (x, y, z) to the voxels of a window, z slowest."""
    steps = torch.arange(-radius, radius + 1, device=device)
    return torch.cartesian_prod(steps, steps, steps).flip(1)


def _peak(similarity: Tensor, allowed: Tensor, best: Tensor, radius: int) -> Tensor:
    """Where parabolas through the similarities beside the best voxels peak, at most half a voxel off (n, 3)."""
    side = 2 * radius + 1
    volume = functional.pad(similarity.view(-1, side, side, side), [1] * 6, value=-2.0).flatten(1)
    known = functional.pad(allowed.view(-1, side, side, side), [1] * 6).flatten(1)
    z, y, x = best // side**2, best // side % side, best % side
    padded = side + 2
    place = (((z + 1) * padded + y + 1) * padded + x + 1)[:, None]
    middle = volume.gather(1, place)
    offset = []
    for step in (1, padded, padded**2):
        before, after = volume.gather(1, place - step), volume.gather(1, place + step)
        usable = known.gather(1, place - step) & known.gather(1, place + step)
        offset.append(torch.where(usable, peak_offset(before, middle, after), 0.0))
    return torch.cat(offset, dim=1)


def _nearest_voxels(grid: Grid, world: Tensor) -> Tensor:
    return torch.from_numpy(np.rint(grid.to_voxel(world.cpu().numpy()))).long().to(world.device)


def _to_world(grid: Grid, voxel: Tensor) -> Tensor:
    matrix = torch.from_numpy(grid.voxel_to_world).to(voxel.device)
    return voxel.double() @ matrix[:3, :3].T + matrix[:3, 3]
