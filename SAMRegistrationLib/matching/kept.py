"""The index of one volume, made once for all steps that search it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..features.base import Features
from ..image import Image
from .index import FeatureIndex


class _Kept:
    """The last index of some features, and its mask."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.mask: Image | None = None
        self.index: FeatureIndex | None = None


_kept: ContextVar[_Kept | None] = ContextVar("kept index", default=None)


@contextmanager
def index_kept(features: Features) -> Iterator[None]:
    """Keep the index that `indexed` makes of these features until the body ends, for whoever asks next."""
    before = _kept.set(_Kept(features))
    try:
        yield
    finally:
        _kept.reset(before)


def indexed(features: Features | FeatureIndex, mask: Image | None) -> FeatureIndex:
    """The index of features in which only voxels of a mask are found; an index is given back as it is."""
    if isinstance(features, FeatureIndex):
        return features
    kept = _kept.get()
    if kept is None or kept.features is not features:
        return FeatureIndex(features, mask)
    if kept.index is None or kept.mask is not mask:
        kept.index, kept.mask = FeatureIndex(features, mask), mask
    return kept.index
