"""Small members of the family of deformable networks, and a pair whose deformation is known, to try them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from SAMRegistrationLib.networks import fields
from SAMRegistrationLib.networks.deformable import DeformableNetwork, build_deformable_network

FINE_CHANNELS, COARSE_CHANNELS = 6, 4


@dataclass(frozen=True)
class NetworkCase:
    """A small network by name and options."""

    name: str
    options: dict[str, Any]

    def build(self, seed: int = 0) -> DeformableNetwork:
        torch.manual_seed(seed)
        return build_deformable_network(self.name, self.options)


U_NET = {"encoder": [8, 12, 12], "decoder": [12, 12, 12, 8]}
RECURRENT = {
    "steps": [2, 2, 2],
    "radii": [1, 1, 1],
    "features": 4,
    "hidden": 8,
    "filters": 4,
}
CASES = {
    "voxelmorph": NetworkCase("voxelmorph", U_NET),
    "voxelmorph, diffeomorphic": NetworkCase("voxelmorph", {**U_NET, "diffeomorphic": True, "squarings": 5}),
    "sam-voxelmorph": NetworkCase("sam-voxelmorph", {"block_widths": [8, 12, 12, 12, 12]}),
    "sam-voxelmorph, u-net": NetworkCase(
        "sam-voxelmorph", {**U_NET, "backbone": "u-net", "diffeomorphic": True, "correlation_step": 1}
    ),
    "residual-u-net": NetworkCase("residual-u-net", {"channels": [8, 12, 16]}),
    "lapirn": NetworkCase("lapirn", {"width": 6}),
    "lapirn, diffeomorphic": NetworkCase("lapirn", {"width": 6, "diffeomorphic": True}),
    "rwcnet": NetworkCase("rwcnet", RECURRENT),
    "rwcnet, diffeomorphic": NetworkCase("rwcnet", {**RECURRENT, "diffeomorphic": True, "squarings": 2}),
    "rwcnet, one resolution": NetworkCase(
        "rwcnet", {**RECURRENT, "resolutions": [4], "steps": [3], "radii": [2], "correlation": False}
    ),
}


@dataclass(frozen=True)
class Pair:
    """Two volumes (1, 1, z, y, x), what the networks may get besides, and the true displacement in voxels."""

    fixed: Tensor
    moving: Tensor
    fixed_embeddings: tuple[Tensor, Tensor]
    moving_embeddings: tuple[Tensor, Tensor]
    truth: Tensor

    def inputs_of(self, network: DeformableNetwork) -> tuple[Any, ...]:
        """The arguments of `forward`."""
        if network.uses_embeddings:
            return self.fixed, self.moving, self.fixed_embeddings, self.moving_embeddings
        return self.fixed, self.moving

    def error(self, field: Tensor) -> float:
        """Mean distance in voxels from the truth, without the margin where it leads out of the volume."""
        distance = (field - self.truth).norm(dim=1)
        return float(distance[:, 3:-3, 3:-3, 3:-3].mean())


def textured_pair(size: tuple[int, int, int] = (32, 32, 32), motion: float = 0.8, seed: int = 0) -> Pair:
    """A pair of smooth noise, as `deformed_pair` makes it."""
    generator = torch.Generator().manual_seed(seed)
    moving = _smooth((1, 1, *size), 10, generator) + 0.4 * _smooth((1, 1, *size), 4, generator)
    return deformed_pair((moving - moving.min()) / (moving.max() - moving.min()), motion, seed)


def deformed_pair(moving: Tensor, motion: float, seed: int = 0) -> Pair:
    """A moving volume (1, 1, z, y, x), and a fixed one that is its exact warp by a smooth field.

    The field is `motion` voxels long on average. The embeddings are smooth noise, warped alike.
    """
    generator = torch.Generator().manual_seed(seed)
    size = tuple(moving.shape[2:])
    truth = _smooth((1, 3, *size), 16, generator)
    truth = truth * (motion / truth.norm(dim=1).mean())
    anatomy = _smooth((1, FINE_CHANNELS + COARSE_CHANNELS, *size), 8, generator)
    return Pair(
        fields.warp(moving, truth),
        moving,
        _embeddings(fields.warp(anatomy, truth)),
        _embeddings(anatomy),
        truth,
    )


def _smooth(shape: tuple[int, ...], wavelength: int, generator: torch.Generator) -> Tensor:
    """Random values on a coarse grid, enlarged and smoothed."""
    coarse = [max(2, -(-size // wavelength) + 1) for size in shape[2:]]
    noise = torch.randn((*shape[:2], *coarse), generator=generator)
    noise = functional.interpolate(noise, size=shape[2:], mode="trilinear", align_corners=True)
    for _ in range(2):
        noise = functional.avg_pool3d(noise, 3, stride=1, padding=1, count_include_pad=False)
    return noise


def _embeddings(anatomy: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors at strides 2 and 8."""
    fine = fields.coarsen(anatomy[:, :FINE_CHANNELS], 2)
    coarse = fields.coarsen(anatomy[:, FINE_CHANNELS:], 8)
    return functional.normalize(fine, dim=1), functional.normalize(coarse, dim=1)
