"""Models that predict a displacement: a network with what it needs to know of its training.

Their catalogue entries hold, as `configuration`: "network" (the options that it is built with), "window" (the HU
that become -1 and 1, or null for the range of each volume), "features" (the model whose embeddings it reads, or
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

Window = tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class DeformableModel:
    """A network with its weights, in evaluation mode on the CPU.

    Args:
        name: of the model.
        network: predicts displacements.
        spacing: isotropic voxel size in mm of its grid.
        window: the HU that become -1 and 1; None for the range of each volume.
        features: name of the model whose embeddings it reads, or None.
        losses: what it was trained on.
    """

    name: str
    network: DeformableNetwork
    spacing: float
    window: Window
    features: str | None
    losses: dict[str, float] = field(default_factory=dict)


def is_deformable(architecture: str) -> bool:
    """Whether a catalogue entry of that architecture predicts displacements, instead of giving features."""
    return architecture in DEFORMABLE_NETWORKS


def normalized(volume: Tensor, window: Window) -> Tensor:
    """Values as the networks see them: the window, or the volume's own range, as -1 to 1, clipped."""
    low, high = (float(volume.min()), float(volume.max())) if window is None else window
    return ((volume - low) * (2 / max(high - low, 1e-6)) - 1).clamp(-1, 1)


def find_deformable(network: str, name: str | None = None) -> ModelEntry:
    """The model of that name, or the first one whose weights are there for that network.

    Raises:
        UsageError: if there is none, saying how to come by one; or if the named model is of another network.
    """
    if name is not None:
        entry = find_model(name)
        if entry.architecture != network:
            raise UsageError(f"the model {name} is of the network {entry.architecture}, not of {network}")
        return entry
    for entry in list_models():
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
    return DeformableModel(
        entry.name,
        network,
        entry.spacing,
        (float(window[0]), float(window[1])) if window else None,
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
