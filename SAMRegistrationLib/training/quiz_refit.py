"""A query point network adapted to an embedding that was trained further, without training the network again.

The network reads an embedding through one 1x1x1 convolution. Where the new vectors still say, up to a linear map,
what the old ones said, that map is found on a few volumes and multiplied into the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..features.base import FeatureExtractor
from ..grid import Grid
from ..image import Image
from ..methods.quiz_inputs import token_features
from ..networks.quiz import Quiz
from .cache import OUTSIDE, CachedVolume

VOLUMES = 12
_RIDGE = 1e-3
"""Share of the mean squared length of a channel that is added to its own."""


def embedding_map(volumes: Sequence[CachedVolume], old: FeatureExtractor, new: FeatureExtractor) -> Tensor:
    """The matrix (E, E) that takes the new vectors to the old ones, by the bodies of `VOLUMES` volumes."""
    step = max(1, len(volumes) // VOLUMES)
    pairs = [_vectors_of(volume, old, new) for volume in volumes[::step][:VOLUMES]]
    before, after = (torch.cat(each) for each in zip(*pairs, strict=True))
    return linear_map(after, before)


def linear_map(given: Tensor, wanted: Tensor) -> Tensor:
    """The matrix M for which `given` (n, E) times M transposed is closest to `wanted` (n, F); (F, E), float32."""
    given, wanted = given.double(), wanted.double()
    moments = given.T @ given
    ridge = _RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype, device=given.device)
    return torch.linalg.solve(moments + ridge, given.T @ wanted).T.float()


@torch.no_grad()
def adapt(network: Quiz, matrix: Tensor) -> None:
    """Let a network read new vectors, which `matrix` (E, E) takes to those that it was trained with.

    Raises:
        ValueError: if the network reads no embedding.
    """
    if network.fusion is None:
        raise ValueError("the network reads no embedding")
    weight = network.fusion.embedding.weight
    weight.copy_((weight.flatten(1) @ matrix.to(weight)).view_as(weight))


def _vectors_of(volume: CachedVolume, old: FeatureExtractor, new: FeatureExtractor) -> tuple[Tensor, Tensor]:
    """The vectors (n, E) of a body under both, cell by cell."""
    values = torch.from_numpy(volume.image()).float()
    depth, height, width = values.shape
    image = Image(values, Grid((width, height, depth), (volume.spacing,) * 3, (0.0,) * 3), "int16", "CT")
    first, second = (token_features(extractor.extract(image)) for extractor in (old, new))
    inside = torch.from_numpy(volume.labels()) != OUTSIDE
    body = image.with_data(inside.float()).resampled(first.grid, default=0.0).data > 0.5
    chosen = body.to(first.data.device)
    return first.data[0].float()[:, chosen].T, second.data[0].float()[:, chosen].T
