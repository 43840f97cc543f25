"""Models that predict a displacement: a network with what it needs to know of its training.

Their catalogue entries hold, as `configuration`: "network" (the options that it is built with), "window" and
"lowest" (see `Normalization`), "features" (the model whose embeddings it reads, or
null) and "losses" (what it was trained on, by the names and weights of the training's configuration).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional

from ..errors import InputError, UsageError
from ..networks.deformable import DEFORMABLE_NETWORKS, DeformableNetwork, Embeddings, build_deformable_network
from ..networks.sam_voxelmorph import FINE_STRIDE
from .catalogue import ModelEntry, find_model, list_models, load_weights


@dataclass(frozen=True)
class Normalization:
    """How a network wants its intensities.

    Args:
        window: the values that become `lowest` and 1, clipped beyond; None for each volume's own range.
        lowest: -1 or 0.
    """

    window: tuple[float, float] | None
    lowest: float = -1.0

    def __call__(self, volume: Tensor) -> Tensor:
        low, high = self.window or (float(volume.min()), float(volume.max()))
        share = ((volume - low) / max(high - low, 1e-6)).clamp(0, 1)
        return self.lowest + (1 - self.lowest) * share


@dataclass(frozen=True, eq=False)
class DeformableModel:
    """A network with its weights, in evaluation mode on the CPU.

    Args:
        name: of the model.
        network: predicts displacements.
        spacing: isotropic voxel size in mm of its grid.
        normalization: how it wants its intensities.
        features: name of the model whose embeddings it reads, or None.
        losses: what it was trained on.
    """

    name: str
    network: DeformableNetwork
    spacing: float
    normalization: Normalization
    features: str | None
    losses: dict[str, float] = field(default_factory=dict)


def is_deformable(architecture: str) -> bool:
    """Whether a catalogue entry of that architecture predicts displacements, instead of giving features."""
    return architecture in DEFORMABLE_NETWORKS


def find_deformable(network: str, name: str | None = None) -> ModelEntry:
    """The model of that name, or the one for that network that the user has added last, or a shipped one.

    Raises:
        UsageError: if there is none, saying how to come by one; or if the named model is of another network.
    """
    if name is not None:
        entry = find_model(name)
        if entry.architecture != network:
            raise UsageError(f"the model {name} is of the network {entry.architecture}, not of {network}")
        return entry
    for entry in reversed(list_models()):
        if entry.architecture == network and entry.available:
            return entry
    raise UsageError(
        f'there are no weights for the network {network}: train them with "samreg train deform --network '
        f'{network} --data MANIFEST --out DIR" and install them with "samreg models import '
        f'DIR/latest.safetensors --name NAME", or choose a preset that needs none'
    )


def load_deformable(entry: ModelEntry) -> DeformableModel:
    """The model of a catalogue entry.

    Raises:
        InputError: if its weights are missing, changed, or do not fit the network.
    """
    configuration = entry.configuration
    network = network_with(entry.architecture, configuration.get("network") or {}, load_weights(entry))
    window = configuration.get("window")
    lowest = float(configuration.get("lowest", Normalization.lowest))
    return DeformableModel(
        entry.name,
        network,
        entry.spacing,
        Normalization((float(window[0]), float(window[1])) if window else None, lowest),
        configuration.get("features"),
        dict(configuration.get("losses") or {}),
    )


def network_with(name: str, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> DeformableNetwork:
    """The network of that name with these options and weights, in evaluation mode.

    Raises:
        InputError: if there is no such network or the weights are not those of it.
    """
    values = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    try:
        network = build_deformable_network(name, options)
        network.load_state_dict(values)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the weights do not fit the network {name}: {error}") from error
    return network.eval()


def embeddings_for(network: DeformableNetwork, shape: tuple[int, ...], embeddings: Embeddings) -> Embeddings:
    """Embeddings as a network reads them beside volumes of a shape (z, y, x).

    Args:
        network: one that `uses_embeddings`.
        shape: of the volumes.
        embeddings: fine and coarse maps over the volumes' box, of any resolution.

    Returns:
        Unit vectors on the grids of the network's strides.
    """
    strides = [(FINE_STRIDE,) * 3, tuple(network.options["coarse_stride"])]
    found = []
    for values, stride in zip(embeddings, strides, strict=True):
        size = tuple(-(-n // s) for n, s in zip(shape, stride, strict=True))
        if tuple(values.shape[2:]) != size:
            finer = all(own >= wanted for own, wanted in zip(values.shape[2:], size, strict=True))
            values = functional.interpolate(values.float(), size=size, mode="area" if finer else "trilinear")
        found.append(functional.normalize(values, dim=1))
    return found[0], found[1]
