"""From prepared volumes to pairs of crops on the network's grid, reproducibly per iteration.

Positions are mm in the frame of a volume: (x, y, z) from the center of its first voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ...models.deformable import Normalization
from ...networks.deformable import Embeddings
from ...networks.fields import coarsen
from ..batches import load_source, seeded_generator
from ..cache import AIR, OUTSIDE, CachedVolume
from ..views import Placement, Source, positions_of, rotation_matrix, sample_at
from .config import GENERATED, INTER, INTRA, DeformableConfig
from .embeddings import EmbeddingMap, EmbeddingStore
from .starts import Starts

LABELLED = 0.5
"""How often a crop is centered on a labelled place instead of any of the body."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two crops over one grid of the fixed volume; the displacement between them is what the network predicts.

    Args:
        names: of the volumes.
        fixed, moving: (1, 1, d, h, w), normalized.
        inside: (1, 1, d, h, w), 1 where both volumes have data.
        body: the same, within the fixed body.
        codes: structures of both, (1, 1, d, h, w), see `VolumeCache.structures`.
        embeddings: fine and coarse maps of both, or None.
        known: (1, 3, d, h, w) in voxels, where the displacement is known.
        keypoints: centers of structures that both have, (P, 3) each in voxels (x, y, z) of the crop, or None.
    """

    names: list[str]
    fixed: Tensor
    moving: Tensor
    inside: Tensor
    body: Tensor
    codes: tuple[Tensor, Tensor]
    embeddings: tuple[Embeddings, Embeddings] | None = None
    known: Tensor | None = None
    keypoints: tuple[Tensor, Tensor] | None = None


class PairSource:
    """Draws pairs. Those of an iteration depend on the seed, the iteration and the process only.

    Raises:
        InputError: if the volumes give none of the kinds of pairs that the configuration wants.
    """

    def __init__(
        self,
        volumes: list[CachedVolume],
        starts: Starts,
        config: DeformableConfig,
        device: torch.device,
        process: int = 0,
        store: EmbeddingStore | None = None,
    ) -> None:
        self.config = config
        self.starts = starts
        self.device = device
        self.process = process
        self.store = store
        self.normalized = Normalization(config.pairs.window, config.pairs.lowest)
        self.resident: dict[str, Source] = {}
        self.embedded: dict[str, list[EmbeddingMap]] = {}
        usable = [volume for volume in volumes if starts.aligned(volume)]
        self.volumes = {
            INTER: _groups(usable, lambda volume: volume.region, lambda volume: volume.subject),
            INTRA: _groups(usable, lambda volume: volume.subject, lambda volume: volume.name),
            GENERATED: [volumes] if volumes else [],
        }
        unknown = set(config.pairs.kinds) - set(self.volumes)
        if unknown:
            raise InputError(f"there is no kind of pairs called {sorted(unknown)[0]}")
        self.kinds = {
            kind: share for kind, share in config.pairs.kinds.items() if share > 0 and self.volumes[kind]
        }
        if not self.kinds:
            raise InputError("the volumes give no pairs of the kinds that the configuration asks for")

    def generator(self, part: int) -> torch.Generator:
        """The random numbers of one part of an iteration in this process."""
        return seeded_generator(self.config.seed, part, self.process)

    def draw(self, generator: torch.Generator) -> list[Pair]:
        """The pairs of one step."""
        return [self._draw_pair(generator) for _ in range(self.config.pairs_per_step)]

    def _draw_pair(self, generator: torch.Generator) -> Pair:
        kind = list(self.kinds)[_drawn(list(self.kinds.values()), generator)]
        groups = self.volumes[kind]
        group = groups[_drawn([math.sqrt(len(members)) for members in groups], generator)]
        fixed = group[int(torch.randint(len(group), (), generator=generator))]
        if kind == GENERATED:
            return self._deformed(fixed, generator)
        others = [volume for volume in group if volume.name != fixed.name]
        if kind == INTER:
            others = [volume for volume in others if volume.subject != fixed.subject]
        return self._aligned(fixed, others[int(torch.randint(len(others), (), generator=generator))], generator)

    def _aligned(self, fixed: CachedVolume, moving: CachedVolume, generator: torch.Generator) -> Pair:
        """A crop of the fixed volume and what the start puts there of the moving one."""
        placement = self._placed(fixed, generator, elastic=0.0)
        positions = positions_of(placement, self.config.pairs.shape)
        matrix = self.starts.between(fixed, moving)
        keypoints = _keypoints(fixed, moving, matrix, placement, self.config.pairs.shape)
        return self._pair((fixed, moving), (positions, _mapped(positions, matrix)), keypoints=keypoints)

    def _deformed(self, volume: CachedVolume, generator: torch.Generator) -> Pair:
        """A deformed crop and the same undeformed: the fixed voxel x shows what the moving x + u has."""
        shape = self.config.pairs.shape
        placement = self._placed(volume, generator, elastic=self.config.pairs.elastic)
        positions = positions_of(placement, shape)
        plain = positions_of(replace(placement, control=torch.zeros_like(placement.control)), shape)
        inverse = torch.linalg.inv_ex(placement.matrix).inverse
        known = torch.einsum("ij,bjzyx->bizyx", inverse, positions - plain)
        return self._pair((volume, volume), (positions, plain), known=known)

    def _placed(self, volume: CachedVolume, generator: torch.Generator, elastic: float) -> Placement:
        """A crop that lies in the volume as far as it fits, turned and scaled a little."""
        config, source = self.config.pairs, self._load(volume)
        labelled = float(torch.rand((), generator=generator)) < LABELLED
        places = source.labelled_places if labelled else source.body_places
        places = places if len(places) else source.body_places
        half = torch.tensor(config.shape[::-1]) * config.spacing / 2
        extent = torch.tensor(source.image.shape[:1:-1]) * source.spacing
        chosen = int(torch.randint(max(1, len(places)), (), generator=generator))
        center = places[chosen] if len(places) else extent / 2
        center = torch.where(extent > 2 * half, center.maximum(half).minimum(extent - half), extent / 2)
        angles = (2 * torch.rand(3, generator=generator) - 1) * math.radians(config.turn)
        stretch = math.exp((2 * float(torch.rand((), generator=generator)) - 1) * math.log(config.scale))
        control = torch.randn((1, 3, *config.elastic_grid), generator=generator) * elastic
        matrix = rotation_matrix(angles) * (config.spacing * stretch)
        return Placement(center, matrix, control).to(self.device)

    def _pair(
        self, volumes: tuple[CachedVolume, CachedVolume], positions: tuple[Tensor, Tensor], **more: Any
    ) -> Pair:
        sources = [self._load(volume) for volume in volumes]
        voxels = [place / source.spacing for place, source in zip(positions, sources, strict=True)]
        images = [
            self.normalized(sample_at(source.image, place, outside=AIR))
            for source, place in zip(sources, voxels, strict=True)
        ]
        codes = [sample_at(source.codes, place, "nearest") for source, place in zip(sources, voxels, strict=True)]
        inside = _within(voxels[0], sources[0]) * _within(voxels[1], sources[1])
        embeddings = None
        if self.store is not None:
            first, second = (self._embedded(v, place) for v, place in zip(volumes, voxels, strict=True))
            embeddings = first, second
        return Pair(
            names=list(dict.fromkeys(volume.name for volume in volumes)),
            fixed=images[0],
            moving=images[1],
            inside=inside,
            body=inside * (codes[0] != OUTSIDE),
            codes=(codes[0], codes[1]),
            embeddings=embeddings,
            **more,
        )

    def _embedded(self, volume: CachedVolume, voxels: Tensor) -> Embeddings:
        """The unit vectors of both maps at the crop, each on the grid of its stride."""
        assert self.store is not None
        if volume.name not in self.embedded:
            self.embedded[volume.name] = [kept.to(self.device) for kept in self.store.maps(volume)]
        maps = self.embedded[volume.name]
        if self.device.type == "cpu":
            # Memory-mapped, and so kept by the system as far as there is room.
            self.embedded.clear()
        found = []
        for kept in maps:
            natural = round(kept.stride * volume.spacing / self.config.pairs.spacing)
            stride = max(self.config.pairs.embedding_stride, natural)
            values = sample_at(kept.data, kept.positions(coarsen(voxels, stride)))
            found.append(functional.normalize(values, dim=1))
        return found[0], found[1]

    def _load(self, volume: CachedVolume) -> Source:
        return load_source(volume, self.device, self.resident)


def _groups(volumes: list[CachedVolume], key: Any, distinct: Any) -> list[list[CachedVolume]]:
    """The volumes by a key, of which groups only those are kept that differ in another."""
    groups: dict[str, list[CachedVolume]] = {}
    for volume in volumes:
        groups.setdefault(key(volume), []).append(volume)
    return [group for group in groups.values() if len({distinct(volume) for volume in group}) > 1]


def _drawn(weights: list[float], generator: torch.Generator) -> int:
    return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))


def _mapped(positions: Tensor, matrix: np.ndarray) -> Tensor:
    """Positions (1, 3, d, h, w) under a 4x4 matrix."""
    full = torch.as_tensor(matrix, dtype=positions.dtype, device=positions.device)
    return torch.einsum("ij,bjzyx->bizyx", full[:3, :3], positions) + full[:3, 3].view(1, 3, 1, 1, 1)


def _within(voxels: Tensor, source: Source) -> Tensor:
    size = voxels.new_tensor(source.image.shape[:1:-1]).view(1, 3, 1, 1, 1)
    return ((voxels >= -0.5) & (voxels < size - 0.5)).all(dim=1, keepdim=True).float()


def _keypoints(
    fixed: CachedVolume,
    moving: CachedVolume,
    matrix: np.ndarray,
    placement: Placement,
    shape: tuple[int, int, int],
) -> tuple[Tensor, Tensor] | None:
    """The centers of common structures that lie in the crop, with their partners, in its voxels."""
    common = [name for name in fixed.landmarks if name in moving.landmarks]
    if not common:
        return None
    own = np.array([fixed.landmarks[name][0] for name in common])
    other = np.array([moving.landmarks[name][0] for name in common])
    other = (other - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    to_voxels = np.linalg.inv(placement.matrix.cpu().double().numpy()).T
    middle = (np.array(shape[::-1]) - 1) / 2
    points = [(place - placement.center.cpu().numpy()) @ to_voxels + middle for place in (own, other)]
    kept = np.all((points[0] >= 0) & (points[0] <= 2 * middle), axis=1)
    if not kept.any():
        return None
    first, second = (torch.as_tensor(p[kept], dtype=torch.float32, device=placement.center.device) for p in points)
    return first, second
