"""Feature extractors that remember: loaded networks, and the embeddings of volumes seen before.

An embedding is known again by the content of the prepared volume, not by where that came from: the same file read
twice, or the same moving volume under the same alignment, is the same volume, and a changed file is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..features.base import FeatureExtractor, FeatureMap, Features
from ..features.registry import ExtractorSource, get_extractor
from ..grid import Grid
from ..image import Image
from ..models.catalogue import ModelEntry, find_model
from .cache import BoundedCache, DeviceCaches


@dataclass
class EmbeddingCounts:
    """How many embeddings one request computed, and how many it found computed already."""

    computed: int = 0
    reused: int = 0


class FeatureStore:
    """Networks and embeddings on every device.

    Args:
        caches: where they are kept.
    """

    def __init__(self, caches: DeviceCaches) -> None:
        self._caches = caches

    def extractors(self, counts: EmbeddingCounts) -> ExtractorSource:
        """`get_extractor`, with extractors that remember and count."""
        return partial(self._extractor, counts)

    def _extractor(
        self,
        counts: EmbeddingCounts,
        name: str,
        device: torch.device | str = "cpu",
        *,
        strict: bool = False,
        mind_spacing: float = 2.0,
    ) -> FeatureExtractor:
        entry = _network_of(name)
        if entry is None:
            return get_extractor(name, device, strict=strict, mind_spacing=mind_spacing)
        cache = self._caches.of(device)
        key = ("model", entry.name, entry.sha256, str(device))
        extractor = cache.get(key)
        if extractor is None:
            extractor = get_extractor(name, device, strict=strict, mind_spacing=mind_spacing)
            cache.put(key, extractor, entry.path.stat().st_size, f"model {entry.name}")
        return RememberingExtractor(extractor, key, cache, counts)


class RememberingExtractor:
    """An extractor that looks up what it is asked for before it computes.

    Args:
        extractor: which computes.
        key: of the extractor, different from that of any other.
        cache: of the device on which it computes.
        counts: told what was computed and what was found.
    """

    def __init__(
        self, extractor: FeatureExtractor, key: Hashable, cache: BoundedCache, counts: EmbeddingCounts
    ) -> None:
        self.name = extractor.name
        self.spacing = extractor.spacing
        self.key = key
        self._extractor = extractor
        self._cache = cache
        self._counts = counts

    def suits(self, image: Image) -> bool:
        """Whether the features were made for volumes of this modality."""
        return self._extractor.suits(image)

    def feature_grids(self, grid: Grid) -> tuple[Grid, Grid | None]:
        """Where the maps of `extract_tensor` lie for a volume on `grid`."""
        return self._extractor.feature_grids(grid)

    def extract(self, image: Image) -> Features:
        """The features of a volume, with the grids they lie on."""
        grid = image.grid
        place = (grid.size, grid.spacing, grid.origin, grid.direction)
        key = (self.key, "volume", image.modality, place, _digest(image.data))
        features: Features = self._remembered(key, lambda: self._extractor.extract(image), _maps_of)
        return features

    def extract_tensor(self, volume: Tensor) -> tuple[Tensor, Tensor | None]:
        """The features of a volume that is sampled as the extractor wants it."""
        key = (self.key, "tensor", tuple(volume.shape), _digest(volume))
        # A copy, since tensors made in inference mode cannot be used outside of it.
        tensors: tuple[Tensor, Tensor | None] = self._remembered(
            key, lambda: self._extractor.extract_tensor(volume.clone()), list
        )
        return tensors

    def _remembered(
        self, key: Hashable, compute: Callable[[], Any], maps: Callable[[Any], list[Tensor | None]]
    ) -> Any:
        found = self._cache.get(key)
        if found is not None:
            self._counts.reused += 1
            return found
        # What is kept may take part in an optimization later, which tensors of inference mode cannot.
        with torch.inference_mode(False), torch.no_grad():
            computed = compute()
        self._counts.computed += 1
        size = sum(tensor.nbytes for tensor in maps(computed) if tensor is not None)
        self._cache.put(key, computed, size, f"{self.name} embedding")
        return computed


def _maps_of(features: Features) -> list[Tensor | None]:
    maps: list[FeatureMap | None] = [features.fine, features.coarse]
    return [None if each is None else each.data for each in maps]


def _network_of(name: str) -> ModelEntry | None:
    """The model that a name stands for, if it has weights to keep."""
    try:
        entry = find_model(name)
    except UsageError:
        return None
    return entry if entry.available else None


def _digest(volume: Tensor) -> bytes:
    values = volume.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(values.data, digest_size=16).digest()
