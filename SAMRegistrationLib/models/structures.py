"""Semantic heads: models that tell structures by the vectors of one embedding.

Their catalogue entries hold, as `configuration`: "features" and "features_sha256" (the model whose vectors they
read, and the checksum of its weights: vectors of any other training mean something else), "structures" (their
names; the first stands for none) and "network" (the options that the head is built with).
"""

from __future__ import annotations

from ..errors import InputError
from ..networks.structure_head import StructureHead
from .catalogue import ModelEntry, list_models, load_weights

ARCHITECTURE = "structures"


def find_structure_head(features: str) -> StructureHead | None:
    """The head for the features of that name, in evaluation mode on the CPU; None where there is none.

    Raises:
        InputError: if its weights are changed or do not fit.
    """
    models = list_models()
    checksums = {entry.sha256 for entry in models if entry.name == features}
    for entry in models:
        if entry.architecture == ARCHITECTURE and entry.available:
            wanted = entry.configuration
            if wanted.get("features") == features and wanted.get("features_sha256") in checksums:
                return build_structure_head(entry)
    return None


def build_structure_head(entry: ModelEntry) -> StructureHead:
    """The head of a catalogue entry.

    Raises:
        InputError: if it is of another kind, or its weights are missing, changed or do not fit.
    """
    if entry.architecture != ARCHITECTURE:
        raise InputError(f"the model {entry.name} tells no structures, it is {entry.architecture}")
    weights = {name: value.float() for name, value in load_weights(entry).items()}
    try:
        head = StructureHead(**entry.configuration["network"])
        head.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"the weights of {entry.name} do not fit their network: {error}") from error
    return head.eval().requires_grad_(False)
