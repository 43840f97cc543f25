"""Networks from the weight files that training writes."""

from __future__ import annotations

from pathlib import Path

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
