"""Feature extractors by name."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch

from ..errors import RegistrationWarning, UsageError
from ..models.catalogue import ModelEntry, find_model
from .base import FeatureExtractor
from .mind import MindExtractor
from .sam import SamExtractor


class ExtractorSource(Protocol):
    """Where extractors come from: `get_extractor`, or something that keeps what that gives."""

    def __call__(
        self, name: str, device: torch.device | str = ..., *, strict: bool = ..., mind_spacing: float = ...
    ) -> FeatureExtractor: ...


def get_extractor(
    name: str, device: torch.device | str = "cpu", *, strict: bool = False, mind_spacing: float = 2.0
) -> FeatureExtractor:
    """The extractor called `name`: "mind", "sam" for the default model, or a model of the catalogue.

    Where "sam" finds no weights, MIND takes its place with a RegistrationWarning, unless `strict`. MIND works at
    `mind_spacing` mm, models at their own spacing.

    Raises:
        UsageError: if there is no such model, or, when strict, no default model.
        InputError: if the weights of a model are missing or damaged.
    """
    if name == "mind":
        return MindExtractor(mind_spacing, device=device)
    if name == "sam" and not strict:
        entry = _default_model()
        if entry is None:
            warnings.warn(
                "there are no weights for SAM features; MIND features are used instead, which are less robust",
                RegistrationWarning,
                stacklevel=2,
            )
            return MindExtractor(mind_spacing, device=device)
        return SamExtractor.of_model(entry, device)
    return SamExtractor.of_model(find_model(name), device)


def _default_model() -> ModelEntry | None:
    """The default model if its weights are there; damaged weights are an error later, no reason to do without."""
    try:
        entry = find_model("sam")
    except UsageError:
        return None
    return entry if entry.available else None
