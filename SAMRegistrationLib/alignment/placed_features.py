"""Embeddings that an alignment was found by, read anew where the volume lies in the end.

A network takes a fifth of a registration to embed a volume. Vectors of unit length change little when a body is
moved, turned or stretched a little, so those that are known already are interpolated instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from ..features.base import FeatureMap, Features
from ..grid import Grid
from ..sampling import slabs, voxel_mesh
from ..solvers.table_sampling import channel_table, sample_table
from ..transforms import AffineTransform

MOST_TURN_AND_STRETCH = 0.06
"""Largest entry of what a linear map does beyond moving: a turn by 3.4 degrees, or a stretch by 6 %."""

_LIKE_SPACING = 0.05


@dataclass(frozen=True, eq=False)
class PlacedFeatures:
    """Features of the moving volume as it lay in some world.

    Args:
        features: there, of unit length.
        to_moving: from that world to the volume's own.
    """

    features: Features
    to_moving: AffineTransform

    def followed_by(self, transform: AffineTransform) -> PlacedFeatures:
        """The same features if the volume's world is mapped on."""
        return replace(self, to_moving=transform.compose(self.to_moving))

    def under(self, place: AffineTransform, fine: Grid, coarse: Grid | None) -> Features | None:
        """The features as the volume lies under another map, those of the border beyond it.

        Args:
            place: from the world of the grids to the volume's own.
            fine: where fine features are wanted.
            coarse: where coarse ones are wanted.

        Returns:
            Unit vectors; None where turn, stretch or voxel size differ by so much that the volume should be
            embedded again.
        """
        there = self.to_moving.inverse().compose(place)
        if np.abs(there.matrix[:3, :3] - np.eye(3)).max() > MOST_TURN_AND_STRETCH:
            return None
        if not np.allclose(fine.spacing, self.features.fine.grid.spacing, rtol=_LIKE_SPACING):
            return None
        known, coarser = self.features.fine, self.features.coarse
        if coarse is None or coarser is None:
            return Features(_read(known, there, fine))
        return Features(_read(known, there, fine), _read(coarser, there, coarse))


def _read(features: FeatureMap, place: AffineTransform, grid: Grid) -> FeatureMap:
    """Interpolated unit vectors, in the memory format channels_last_3d."""
    data = features.data
    table, shape = channel_table(data), tuple(data.shape[2:])
    made = data.new_empty((1, data.shape[1], *grid.shape)).contiguous(memory_format=torch.channels_last_3d)
    rows = made.permute(0, 2, 3, 4, 1)[0]
    to_voxels = features.grid.world_to_voxel @ place.matrix @ grid.voxel_to_world
    for slab in slabs(grid.shape, data.device):
        positions = voxel_mesh(grid.shape, to_voxels, data.device, slab)
        vectors = sample_table(table, shape, positions.flatten(1).t())
        rows[slab] = functional.normalize(vectors.float(), dim=1).view(*positions.shape[1:], -1)
    return FeatureMap(made, grid)
