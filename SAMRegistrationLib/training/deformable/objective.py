"""The loss of one pair: the weighted sum of what the configuration asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import InputError
from ...networks.fields import coarsen, warp
from ...solvers.terms import diffusion
from ..cache import FIRST_LABEL
from .config import DeformableLossConfig
from .losses import (
    correlation_loss,
    dice_loss,
    embedding_loss,
    keypoint_loss,
    known_field_loss,
    local_correlation_loss,
    mind_loss,
    negative_jacobian,
    squared_difference,
    total_variation,
)
from .pairs import Pair


def pair_loss(
    pair: Pair, field: Tensor, config: DeformableLossConfig, *, stride: int = 1, spacing: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss of a predicted field, and the values of its parts before they are weighted.

    Args:
        pair: what was to be registered.
        field: (1, 3, z, y, x) in voxels of the grid of `stride`.
        config: weights and constants.
        stride: of the field's grid in relation to the pair's.
        spacing: mm of a voxel of the pair.
    """
    values = _Comparison(pair, field, config, stride, spacing).losses()
    total = torch.stack([getattr(config, name) * value for name, value in values.items()]).sum()
    return total, {name: value.detach() for name, value in values.items()}


class _Comparison:
    """A pair on the grid of a predicted field, with the moving volume warped by it."""

    def __init__(
        self, pair: Pair, field: Tensor, config: DeformableLossConfig, stride: int, spacing: float
    ) -> None:
        self.pair, self.field, self.config, self.stride, self.spacing = pair, field, config, stride, spacing
        self.inside = coarsen(pair.inside, stride) if config.masked else None
        self.body = coarsen(pair.body, stride) if config.masked else None
        self.fixed, self.moving = coarsen(pair.fixed, stride), coarsen(pair.moving, stride)
        self.warped = warp(self.moving, field)

    def losses(self) -> dict[str, Tensor]:
        """Every loss that has a weight and, for this pair, something to compare."""
        config, field = self.config, self.field
        possible: dict[str, Callable[[], Tensor | None]] = {
            "ncc": lambda: correlation_loss(self.fixed, self.warped, self.inside),
            "lncc": self._local_correlation,
            "mse": lambda: squared_difference(self.fixed, self.warped, self.inside),
            "mind": lambda: mind_loss(self.fixed, self.moving, field, self.inside),
            "sam": self._embeddings,
            "dice": self._overlap,
            "keypoints": self._keypoints,
            "known": self._known,
            "diffusion": lambda: diffusion(field),
            "total_variation": lambda: total_variation(field),
            "negative_jacobian": lambda: negative_jacobian(field),
        }
        wanted = {name: loss() for name, loss in possible.items() if getattr(config, name)}
        return {name: value for name, value in wanted.items() if value is not None}

    def _local_correlation(self) -> Tensor:
        """Of a coarse field with smaller windows and fewer resolutions, as in LapIRN."""
        coarser = int(math.log2(self.stride))
        radius, scales = max(1, self.config.radius - coarser), max(1, self.config.scales - coarser)
        return local_correlation_loss(self.fixed, self.warped, self.inside, radius, scales)

    def _embeddings(self) -> Tensor:
        if self.pair.embeddings is None:
            raise InputError("the loss of embeddings needs features that are a model's")
        shares = (1 - self.config.coarse_share, self.config.coarse_share)
        maps = zip(shares, *self.pair.embeddings, strict=True)
        parts = [share * embedding_loss(own, other, self.field, self.body) for share, own, other in maps if share]
        return torch.stack(parts).sum()

    def _overlap(self) -> Tensor | None:
        """The Dice loss of the structures that both crops show."""
        present = [set(codes.unique().tolist()) for codes in self.pair.codes]
        common = sorted(code for code in present[0] & present[1] if code >= FIRST_LABEL)
        if not common:
            return None
        masks = [
            coarsen(torch.cat([(codes == code).float() for code in common], dim=1), self.stride)
            for codes in self.pair.codes
        ]
        return dice_loss(masks[0], masks[1], self.field)

    def _keypoints(self) -> Tensor | None:
        if self.pair.keypoints is None:
            return None
        own, other = ((part - (self.stride - 1) / 2) / self.stride for part in self.pair.keypoints)
        return keypoint_loss(own, other, self.field, self.spacing * self.stride)

    def _known(self) -> Tensor | None:
        if self.pair.known is None:
            return None
        return known_field_loss(self.field, coarsen(self.pair.known, self.stride) / self.stride, self.inside)
