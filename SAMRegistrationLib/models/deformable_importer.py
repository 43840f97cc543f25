"""Recognizing files with the weights of networks that predict displacements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from ..networks.lapirn import LapIRN, from_published, published_width
from .deformable import is_deformable, network_with

PUBLISHED_LAPIRN_MARK = "model_lvl2.model_lvl1.input_encoder_lvl1."
PUBLISHED_SPACING = 1.0
"""Of the brain MR volumes that the published LapIRN weights are for, in mm."""


@dataclass(frozen=True, eq=False)
class DeformableFile:
    """What a file of weights says of its network.

    Args:
        network: its name.
        spacing: isotropic voxel size in mm of its grid.
        configuration: as in the catalogue.
        weights: under the network's own names.
    """

    network: str
    spacing: float
    configuration: dict[str, Any]
    weights: dict[str, Tensor]


def recognize_deformable(
    path: Path, weights: Mapping[str, Tensor], *, diffeomorphic: bool = False
) -> DeformableFile | None:
    """What our own training wrote, or a published LapIRN file; None for anything else.

    Args:
        path: the file.
        weights: its tensors.
        diffeomorphic: that a published LapIRN file is of that variant, which its tensors do not tell.

    Raises:
        InputError: if the weights are not finite, or not those of the network that the file names.
    """
    found = _own(path, weights) or _published_lapirn(weights, diffeomorphic)
    if found is None:
        return None
    broken = [name for name, value in found.weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InputError(f"{path} holds values that are not finite: {broken[0]}")
    network_with(found.network, found.configuration.get("network") or {}, found.weights)
    return found


def _own(path: Path, weights: Mapping[str, Tensor]) -> DeformableFile | None:
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if not is_deformable(metadata.get("architecture", "")):
            return None
        configuration, spacing = json.loads(metadata["configuration"]), float(metadata["spacing"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} does not say how its network was trained: {error}") from error
    return DeformableFile(metadata["architecture"], spacing, configuration, dict(weights))


def _published_lapirn(weights: Mapping[str, Tensor], diffeomorphic: bool) -> DeformableFile | None:
    if not any(name.startswith(PUBLISHED_LAPIRN_MARK) for name in weights):
        return None
    try:
        own = from_published(weights)
        options = {"width": published_width(own), "diffeomorphic": diffeomorphic}
    except ValueError as error:
        raise InputError(f"the file looks like a LapIRN checkpoint, but {error}") from error
    configuration = {
        "network": options,
        "window": None,
        "lowest": 0.0,
        "features": None,
        "losses": {"lncc": 1.0, "radius": 3, "diffusion": 1 / 9},
    }
    return DeformableFile(LapIRN.name, PUBLISHED_SPACING, configuration, own)
