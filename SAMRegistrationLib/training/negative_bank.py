"""Coarse vectors of recent volumes, as negatives for volumes of other body regions."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LossConfig
from .embedding_samples import EmbeddedView


class NegativeBank:
    """The latest `other_negatives` coarse vectors of every body region, without gradients.

    SAM takes negatives from the other volumes of a batch. A batch here holds two subjects of one region, which
    share their anatomy, so that negatives come from the batches before. Volumes of the same region are left out.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.vectors: dict[str, Tensor] = {}

    def strangers(self, region: str) -> Tensor | None:
        """Vectors (n, C) of the other regions, or None while there are none."""
        others = [vectors for name, vectors in sorted(self.vectors.items()) if name != region]
        return torch.cat(others) if others else None

    def add(self, region: str, views: list[EmbeddedView]) -> None:
        """Put places of these views in front, and forget the oldest."""
        share = max(1, self.config.other_negatives // 8)
        recent = [view.pool.coarse[:share].detach() for view in views]
        known = [self.vectors[region]] if region in self.vectors else []
        self.vectors[region] = torch.cat([*recent, *known])[: self.config.other_negatives]

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs, on the CPU."""
        return {region: vectors.cpu() for region, vectors in self.vectors.items()}

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Continue from a `state`."""
        self.vectors = {region: vectors.to(device) for region, vectors in state.items()}
