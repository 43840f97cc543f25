"""Networks from the weight files that training writes."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..models.architectures import Architecture, EmbeddingNetwork, find_architecture

CONFIGURATION_KEYS = {"width": int, "embedding_channels": int, "semantic": bool}
"""Metadata entries that are arguments of a network."""


def network_from_weights(path: Path) -> tuple[EmbeddingNetwork, Architecture]:
    """The network of an exported file, in evaluation mode on the CPU.

    Raises:
        InputError: if the file is missing, damaged, or does not say its architecture.
    """
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
        architecture = find_architecture(metadata["architecture"])
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} is not a weight file of this program") from error
    configuration = {name: kind(metadata[name]) for name, kind in CONFIGURATION_KEYS.items() if name in metadata}
    return architecture.with_weights(tensors, configuration), architecture
