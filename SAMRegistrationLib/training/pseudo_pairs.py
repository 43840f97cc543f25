"""Correspondences between training subjects that the model found itself: their files, and how they are drawn.

A file holds, on a lattice over one cached volume, where each place lies in another subject's, and which of these
answers can be relied on; `pair_search` writes them.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .cache import CachedVolume
from .checkpoint import write_whole
from .views import sample_map

LATTICE_MM = 8.0
"""Distance of the places whose correspondence is stored; the first lies at the first cached voxel's center."""

LEAST_AGREEMENT = 0.5
"""Interpolated share of agreeing lattice points from which on a place between them counts as agreeing."""

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class PseudoPair:
    """Where places of the cached volume `fixed` lie in the cached volume `moving`.

    Args:
        fixed: name of the volume over which the lattice lies.
        moving: name of the other subject's volume.
        spacing: voxel size in mm of the cache that both are from.
        displacement: (3, z, y, x) float16 in mm, components x, y, z, from place to place in each volume's own
            frame; empty if the pair was rejected.
        agrees: (z, y, x) bool, where the displacement can be relied on.
    """

    fixed: str
    moving: str
    spacing: float
    displacement: Tensor
    agrees: Tensor

    @classmethod
    def rejected(cls, fixed: str, moving: str, spacing: float) -> PseudoPair:
        """A pair of volumes of which too little corresponds."""
        nothing = torch.zeros(0, 0, 0, dtype=torch.bool)
        return cls(fixed, moving, spacing, torch.zeros(3, 0, 0, 0, dtype=torch.float16), nothing)

    @property
    def is_rejected(self) -> bool:
        return self.agrees.numel() == 0

    @property
    def file_name(self) -> str:
        return pair_file_name(self.fixed, self.moving)

    def to(self, device: torch.device) -> PseudoPair:
        """The same pair on another device."""
        return replace(self, displacement=self.displacement.to(device), agrees=self.agrees.to(device))

    def mapped(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (n, 3) in the moving volume of positions (n, 3) in the fixed one, both in mm of their own
        cached frames, and (n,) whether they agree."""
        lattice = torch.cat([self.displacement.float(), self.agrees[None].float()])
        values = sample_map(lattice, positions / LATTICE_MM)
        return positions + values[:, :3], values[:, 3] > LEAST_AGREEMENT

    def draw_anchors(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One random agreeing place in mm, in the fixed and in the moving volume's frame, (3,) each."""
        z, y, x = self._agreeing[int(torch.randint(len(self._agreeing), (), generator=generator))].tolist()
        place = torch.tensor([x, y, z]) * LATTICE_MM
        return place, place + self.displacement[:, z, y, x].float().cpu()

    @cached_property
    def _agreeing(self) -> Tensor:
        return torch.nonzero(self.agrees).cpu()


class PseudoPairs:
    """The usable pairs of a folder, by body region."""

    def __init__(self, pairs: list[PseudoPair], volumes: list[CachedVolume]) -> None:
        self.volumes = {volume.name: volume for volume in volumes}
        self.regions: dict[str, list[PseudoPair]] = {}
        self._resident: dict[str, PseudoPair] = {}
        for pair in pairs:
            self.regions.setdefault(self.volumes[pair.fixed].region, []).append(pair)

    def __len__(self) -> int:
        return sum(len(pairs) for pairs in self.regions.values())

    def draw(self, region: str, generator: torch.Generator) -> PseudoPair | None:
        """Any pair of a region with the same probability; None if there is none."""
        pairs = self.regions.get(region, [])
        return pairs[int(torch.randint(len(pairs), (), generator=generator))] if pairs else None

    def volumes_of(self, pair: PseudoPair) -> tuple[CachedVolume, CachedVolume]:
        """The two cached volumes of a pair."""
        return self.volumes[pair.fixed], self.volumes[pair.moving]

    def resident(self, pair: PseudoPair, device: torch.device) -> PseudoPair:
        """The pair on a device, where it stays once used."""
        if pair.file_name not in self._resident:
            self._resident[pair.file_name] = pair.to(device)
        return self._resident[pair.file_name]


def pair_file_name(fixed: str, moving: str) -> str:
    """What the file of a pair of volumes is called."""
    return f"{fixed}__{moving}.npz"


def lattice_shape(shape: tuple[int, ...], spacing: float) -> tuple[int, int, int]:
    """Lattice points (z, y, x) that reach over a volume of `shape` voxels of `spacing` mm."""
    z, y, x = (int(np.ceil((size - 1) * spacing / LATTICE_MM - 1e-6)) + 1 for size in shape)
    return z, y, x


def write_pseudo_pair(folder: Path, pair: PseudoPair) -> None:
    """Write a pair's file, whole or not at all.

    Raises:
        OSError: if that fails.
    """

    def save(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez_compressed(
                stream,
                fixed=pair.fixed,
                moving=pair.moving,
                spacing=pair.spacing,
                displacement=pair.displacement.cpu().numpy(),
                agrees=pair.agrees.cpu().numpy(),
            )

    write_whole(folder / pair.file_name, save)


def read_pseudo_pair(path: Path) -> PseudoPair:
    """Read a pair's file.

    Raises:
        InputError: if it is damaged or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            displacement, agrees = content["displacement"], content["agrees"]
            names = str(content["fixed"]), str(content["moving"])
            spacing = float(content["spacing"])
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a readable file of a pseudo-pair.") from error
    types = displacement.dtype == np.float16 and agrees.dtype == np.bool_
    if not types or displacement.shape != (3, *agrees.shape) or not np.isfinite(displacement[:, agrees]).all():
        raise InputError(f"{path} is not a readable file of a pseudo-pair.")
    return PseudoPair(*names, spacing, torch.from_numpy(displacement), torch.from_numpy(agrees))


def read_pseudo_pairs(folder: Path, volumes: list[CachedVolume]) -> PseudoPairs:
    """All pairs of a folder that were not rejected and whose volumes are both among `volumes`.

    Raises:
        InputError: if a file is damaged or was made from another cache, or if no pair remains.
    """
    known = {volume.name: volume for volume in volumes}
    pairs = []
    for path in sorted(folder.glob("*.npz")):
        pair = read_pseudo_pair(path)
        if pair.is_rejected or pair.fixed not in known or pair.moving not in known:
            continue
        _require_same_cache(path, pair, known[pair.fixed])
        if bool(pair.agrees.any()):
            pairs.append(pair)
    if not pairs:
        raise InputError(f"The folder {folder} holds no pseudo-pairs of the volumes to train on.")
    return PseudoPairs(pairs, volumes)


def _require_same_cache(path: Path, pair: PseudoPair, fixed: CachedVolume) -> None:
    if pair.spacing != fixed.spacing:
        raise InputError(
            f"{path} was made from a cache of {pair.spacing:g} mm voxels, but this one has {fixed.spacing:g} mm."
        )
    if tuple(pair.agrees.shape) != lattice_shape(fixed.image().shape, fixed.spacing):
        raise InputError(f"{path} does not fit the size of the cached volume {fixed.name}.")
