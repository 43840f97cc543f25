"""A semantic head on frozen embeddings: which structure a voxel belongs to (UAE-S, arXiv 2311.15111)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_VOXELS_AT_ONCE = 1 << 16


class StructureHead(nn.Module):
    """Two linear layers from joined unit vectors to the structures, the first of which is none of them.

    Args:
        channels: of the vectors.
        hidden: channels between the layers.
        structures: number of structures, "none of them" included.
    """

    def __init__(self, channels: int = 128, hidden: int = 64, structures: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(channels, hidden)
        self.second = nn.Linear(hidden, structures)
        self._scale = channels**0.5

    def forward(self, vectors: Tensor) -> Tensor:
        """Log odds (n, structures) of unit vectors (n, channels)."""
        scores: Tensor = self.second(torch.relu(self.first(vectors * self._scale)))
        return scores

    @torch.no_grad()
    def unit_vectors(self, features: Tensor) -> Tensor:
        """The square roots of the probabilities (1, structures, z, y, x) of unit vectors (1, channels, z, y, x).

        They are of unit length; the dot product of two is their distributions' Bhattacharyya coefficient.
        """
        vectors = features.flatten(2)[0]
        chunks = [self(part.T.float()).softmax(dim=1).sqrt().T for part in vectors.split(_VOXELS_AT_ONCE, dim=1)]
        return torch.cat(chunks, dim=1).view(1, -1, *features.shape[2:])
