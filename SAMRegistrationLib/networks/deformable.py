"""The networks that predict a displacement between two volumes, by name.

>>> network = build_deformable_network("voxelmorph", {"diffeomorphic": True})
>>> again = build_deformable_network(network.name, network.options)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .deformable_network import DeformableNetwork, Embeddings
from .lapirn import LapIRN
from .residual_unet import ResidualUNet
from .rwcnet import RWCNet
from .sam_voxelmorph import SAMVoxelMorph
from .voxelmorph import VoxelMorph

__all__ = ["DEFORMABLE_NETWORKS", "DeformableNetwork", "Embeddings", "build_deformable_network"]

_FAMILY: tuple[type[DeformableNetwork], ...] = (VoxelMorph, SAMVoxelMorph, ResidualUNet, LapIRN, RWCNet)

DEFORMABLE_NETWORKS: dict[str, type[DeformableNetwork]] = {network.name: network for network in _FAMILY}


def build_deformable_network(name: str, options: Mapping[str, Any] | None = None) -> DeformableNetwork:
    """The network of that name with these options (its defaults otherwise), with fresh weights.

    Raises:
        ValueError: if there is no such network, or it has no such option.
    """
    if name not in DEFORMABLE_NETWORKS:
        known = ", ".join(sorted(DEFORMABLE_NETWORKS))
        raise ValueError(f"there is no deformable network {name!r} (there are {known})")
    try:
        return DEFORMABLE_NETWORKS[name](**(options or {}))
    except TypeError as error:
        raise ValueError(f"wrong options for the network {name!r}: {error}") from error
