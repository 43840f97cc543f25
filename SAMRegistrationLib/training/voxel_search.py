"""The most similar place of a whole feature map, found by looking at every voxel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..features.base import FeatureMap
from ..matching import peak_offset

QUERIES_AT_ONCE = 64


def nearest_voxels(queries: Tensor, target: FeatureMap) -> Tensor:
    """Voxel coordinates (n, 3) as (x, y, z) of the most similar place of `target` for every query (n, C)."""
    shape = target.data.shape[2:]
    rows = target.data[0].flatten(1)
    places = [torch.empty((0, 3), device=rows.device)]
    for chunk in queries.to(rows.dtype).split(QUERIES_AT_ONCE):
        similarity = chunk @ rows
        places.append(_refined(similarity.reshape(len(chunk), *shape), similarity.argmax(dim=1)))
    return torch.cat(places)


def _refined(similarity: Tensor, best: Tensor) -> Tensor:
    """Add to each best voxel the vertex of the parabola through it and its neighbors along every axis."""
    _, depth, height, width = similarity.shape
    index = torch.stack([best // (height * width), best // width % height, best % width], dim=1)
    sizes = torch.tensor([depth, height, width], device=best.device)
    place = index.float()
    middle = _values_at(similarity, index)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.long, device=best.device)
        step[axis] = 1
        before, after = (
            _values_at(similarity, neighbor.clamp(min=0).minimum(sizes - 1))
            for neighbor in (index - step, index + step)
        )
        place[:, axis] += peak_offset(before, middle, after)
    return place.flip(1)


def _values_at(similarity: Tensor, index: Tensor) -> Tensor:
    """Row i of `similarity` (n, d, h, w) at voxel i of `index` (n, 3) in (z, y, x)."""
    z, y, x = index.unbind(1)
    return similarity[torch.arange(len(index), device=index.device), z, y, x].float()
