"""How much every voxel of a volume looks like one point of another."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..image import Image
from .index import FeatureIndex


def likeness_map(index: FeatureIndex, source: FeatureIndex, world_point: ArrayLike) -> Image:
    """The cosine similarity, -1 to 1, of every voxel of a volume's features to a point of the other volume.

    Args:
        index: of the volume that is shown.
        source: of the volume that the point belongs to.
        world_point: (3,) in LPS mm.

    Returns:
        A volume on the grid of the features, on the CPU.
    """
    query = source.vectors_at(np.reshape(world_point, (1, 3)))[0]
    values = torch.zeros(index.grid.shape, device=query.device)
    for part, vectors in index.vectors.slabs():
        values[part] = vectors.float() @ query.float()
    return Image(values.cpu(), index.grid)
