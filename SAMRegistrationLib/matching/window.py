"""Searches of a feature index that stay near a place where the partner is expected."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..grid import Grid
from .index import FeatureIndex

RADIUS_MM = 12.0
"""How far from where it is expected a partner is looked for."""

MOST_VOXELS = 4
"""A window reaches at most so many voxels to each side."""

TEMPERATURE = 0.05
"""Difference of cosine similarity that weighs as much as one unit of log-probability."""

_NARROWEST_MM, _WIDEST_MM = 1.0, 100.0
_VALUES_AT_ONCE = 2**24


def most_similar_near(index: FeatureIndex, queries: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """World positions (n, 3), below a voxel, most like vectors near expected ones, and whether there are any.

    Args:
        index: of the volume searched.
        queries: (n, C) unit vectors.
        expected: (n, 3) world positions in mm; searched is the cube of `RADIUS_MM` around each.
    """
    radius = _radius(index.map.grid)
    places, found = [], []
    for query, center in _chunks(index, queries, _nearest_voxels(index.map.grid, expected), radius):
        similarity, allowed = _window(index, query, center, radius)
        best = similarity.argmax(dim=1)
        places.append(center + _offsets(radius, center.device)[best] + _peak(similarity, allowed, best, radius))
        found.append(allowed.any(dim=1))
    return _to_world(index.map.grid, torch.cat(places)), torch.cat(found)


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
    grid, radius = index.map.grid, MOST_VOXELS
    places, found = [], []
    centers = _nearest_voxels(grid, predicted)
    start = 0
    for query, center in _chunks(index, queries, centers, radius):
        rows = slice(start, start + len(query))
        start = rows.stop
        similarity, allowed = _window(index, query, center, radius)
        positions = _to_world(grid, center[:, None] + _offsets(radius, center.device))
        distance = (positions - predicted[rows, None]).norm(dim=-1)
        prior = (distance / width[rows, None].clamp(_NARROWEST_MM, _WIDEST_MM)).square() / 2
        evidence = torch.where(allowed, similarity.double() / TEMPERATURE - prior, -1e4)
        places.append((evidence.softmax(dim=1)[..., None] * positions).sum(dim=1))
        found.append(allowed.any(dim=1))
    if not places:
        return predicted, width, torch.zeros_like(width, dtype=torch.bool)
    place = torch.where(width[:, None] > 0, torch.cat(places), predicted)
    score = (queries.float() * index.vectors_at(place.cpu().numpy()).float()).sum(dim=1).double()
    return place, score, torch.cat(found)


def _chunks(index: FeatureIndex, queries: Tensor, centers: Tensor, radius: int) -> zip[tuple[Tensor, Tensor]]:
    at_once = max(1, _VALUES_AT_ONCE // ((2 * radius + 1) ** 3 * index.map.channels))
    return zip(queries.split(at_once), centers.split(at_once), strict=True)


def _radius(grid: Grid) -> int:
    return int(np.clip(np.ceil(RADIUS_MM / np.mean(grid.spacing)), 1, MOST_VOXELS))


def _window(index: FeatureIndex, queries: Tensor, center: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Similarity (n, w) of the voxels around centers, -2 where they may not be found, and whether they may."""
    vectors, allowed = index.vectors_of(center[:, None] + _offsets(radius, center.device))
    similarity = torch.bmm(vectors, queries[..., None])[..., 0].float()
    return similarity.masked_fill(~allowed, -2.0), allowed


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
        curvature = before + after - 2 * middle
        usable = known.gather(1, place - step) & known.gather(1, place + step) & (curvature < -1e-6)
        peak = (before - after) / (2 * curvature.clamp(max=-1e-6))
        offset.append(torch.where(usable, peak.clamp(-0.5, 0.5), 0.0))
    return torch.cat(offset, dim=1)


def _nearest_voxels(grid: Grid, world: Tensor) -> Tensor:
    return torch.from_numpy(np.rint(grid.to_voxel(world.cpu().numpy()))).long().to(world.device)


def _to_world(grid: Grid, voxel: Tensor) -> Tensor:
    matrix = torch.from_numpy(grid.voxel_to_world).to(voxel.device)
    return voxel.double() @ matrix[:3, :3].T + matrix[:3, 3]
