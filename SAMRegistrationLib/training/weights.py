"""Networks and extractors from the weight files that training writes."""

from __future__ import annotations

from pathlib import Path

from ..device import resolve_device
from ..features.base import FeatureExtractor
from ..features.registry import get_extractor
from ..features.sam import SamExtractor
from ..models.architectures import Architecture, EmbeddingNetwork
from ..models.importer import read_tensors, recognize


def network_from_weights(path: Path) -> tuple[EmbeddingNetwork, Architecture]:
    """The network of an exported file, in evaluation mode on the CPU.

    Raises:
        InputError: if the file is missing, damaged, or holds no weights of a known architecture.
    """
    tensors = read_tensors(path)
    architecture = recognize(tensors, path)
    return architecture.with_weights(tensors, architecture.configuration_of(tensors)), architecture


def extractor_of(model: str, weights: Path | None, device: str) -> FeatureExtractor:
    """The extractor of a model, or of an exported file instead where one is given.

    Raises:
        UsageError: for an unknown model or device name.
        InputError: if the weights or the device cannot be used.
    """
    target = resolve_device(device)
    if weights is None:
        return get_extractor(model, target)
    network, architecture = network_from_weights(weights)
    return SamExtractor(network, architecture, weights.stem, target)
