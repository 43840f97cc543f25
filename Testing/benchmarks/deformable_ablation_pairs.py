"""Volumes of one region in one frame, cut to one box: pairs of them cost a training step nothing to draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.models.deformable import Normalization
from SAMRegistrationLib.networks.deformable import Embeddings
from SAMRegistrationLib.networks.fields import average, coarsen, identity_positions, warp
from SAMRegistrationLib.sampling import voxel_mesh
from SAMRegistrationLib.training.batches import seeded_generator
from SAMRegistrationLib.training.cache import AIR, OUTSIDE, CachedVolume
from SAMRegistrationLib.training.deformable.config import GENERATED, DeformableConfig
from SAMRegistrationLib.training.deformable.embeddings import EmbeddingStore
from SAMRegistrationLib.training.deformable.pairs import Pair
from SAMRegistrationLib.training.deformable.starts import Starts
from SAMRegistrationLib.training.views import sample_at

SPACING = 4.0
BOX = (64, 48, 64)
"""Voxels (z, y, x) of `SPACING` around the labelled structures of the frame's volume."""

STRIDES = (2, 4)
"""Of the fine and the coarse embeddings in relation to those voxels; crops lie at multiples of the larger."""

NOISE = 0.05
"""Standard deviation of what is added to generated pairs, whose intensities are -1 to 1."""


@dataclass(frozen=True, eq=False)
class FramedVolume:
    """A volume in the common frame.

    Args:
        name: of the volume.
        image, codes: (1, 1, z, y, x) at half of `SPACING`: HU, and structures as in `VolumeCache.structures`.
        inside: (1, 1, z, y, x) at `SPACING`, 1 where the volume has data.
        embeddings: fine and coarse unit vectors on the grids of `STRIDES`.
    """

    name: str
    image: Tensor
    codes: Tensor
    inside: Tensor
    embeddings: Embeddings

    def as_image(self) -> Image:
        """The volume on its grid of half of `SPACING`, the box's first voxel at the origin."""
        values = self.image[0, 0].float()
        return Image(values, Grid((2 * BOX[2], 2 * BOX[1], 2 * BOX[0]), (SPACING / 2,) * 3), "int16", "CT")


def framed_volumes(
    volumes: list[CachedVolume], starts: Starts, store: EmbeddingStore, reference: CachedVolume, folder: Path
) -> list[FramedVolume]:
    """The volumes in the frame of the reference, kept in the folder for the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    places = np.concatenate([np.asarray(points) for points in reference.landmarks.values()])
    corner = (places.min(axis=0) + places.max(axis=0)) / 2 - np.array(BOX[::-1]) * SPACING / 2
    framed = []
    for volume in volumes:
        path = folder / f"{volume.name}.pt"
        if not path.is_file():
            torch.save(vars(_framed(volume, starts.between(reference, volume), store, corner)), path)
        framed.append(FramedVolume(**torch.load(path, weights_only=True)))
    return framed


def _framed(volume: CachedVolume, matrix: np.ndarray, store: EmbeddingStore, corner: np.ndarray) -> FramedVolume:
    image, codes = (torch.from_numpy(array)[None, None] for array in (volume.image(), volume.labels()))
    half = SPACING / 2
    from_box = np.eye(4)
    from_box[:3, :3] *= half
    from_box[:3, 3] = corner + half / 2
    voxels = voxel_mesh(tuple(2 * n for n in BOX), np.diag([1 / volume.spacing] * 3 + [1]) @ matrix @ from_box)[
        None
    ]
    size = voxels.new_tensor(image.shape[:1:-1]).view(1, 3, 1, 1, 1)
    inside = ((voxels >= -0.5) & (voxels < size - 0.5)).all(dim=1, keepdim=True).float()
    maps = []
    for kept, stride in zip(store.maps(volume), STRIDES, strict=True):
        values = sample_at(kept.data, kept.positions(coarsen(voxels, 2 * stride)))
        maps.append(functional.normalize(values, dim=1).half())
    return FramedVolume(
        volume.name,
        sample_at(image, voxels, outside=AIR).to(torch.int16),
        sample_at(codes, voxels, "nearest").to(torch.uint8),
        coarsen(inside, 2),
        (maps[0], maps[1]),
    )


class FramedPairs:
    """Crops of pairs of framed volumes, or of one and its deformed copy: a source for `DeformableTrainer`."""

    def __init__(
        self, volumes: list[FramedVolume], config: DeformableConfig, store: EmbeddingStore | None
    ) -> None:
        self.config = config
        self.store = store
        normalized = Normalization(config.pairs.window, config.pairs.lowest)
        self.volumes = [(volume, normalized(coarsen(volume.image.float(), 2))) for volume in volumes]
        self.codes = [volume.codes[:, :, ::2, ::2, ::2].float() for volume in volumes]

    def generator(self, part: int) -> torch.Generator:
        """The random numbers of one part of an iteration."""
        return seeded_generator(self.config.seed, part, 0)

    def draw(self, generator: torch.Generator) -> list[Pair]:
        """The pairs of one step."""
        return [self._draw_pair(generator) for _ in range(self.config.pairs_per_step)]

    def _draw_pair(self, generator: torch.Generator) -> Pair:
        if GENERATED in self.config.pairs.kinds:
            return self.deformed(int(torch.randint(len(self.volumes), (), generator=generator)), generator)
        first, second = torch.randperm(len(self.volumes), generator=generator)[:2].tolist()
        return self._between(first, second, self._cut(generator))

    def _cut(self, generator: torch.Generator) -> tuple[int, ...]:
        """The first voxel (z, y, x) of a crop."""
        step = max(STRIDES)
        free = [(whole - part) // step for whole, part in zip(BOX, self.config.pairs.shape, strict=True)]
        return tuple(step * int(torch.randint(n + 1, (), generator=generator)) for n in free)

    def _between(self, first: int, second: int, start: tuple[int, ...]) -> Pair:
        (fixed, fixed_values), (moving, moving_values) = self.volumes[first], self.volumes[second]
        inside = self._part(fixed.inside * moving.inside, start)
        codes = self._part(self.codes[first], start), self._part(self.codes[second], start)
        maps = [self._maps(volume, start) for volume in (fixed, moving)] if self.store else None
        return Pair(
            names=[fixed.name, moving.name],
            fixed=self._part(fixed_values, start),
            moving=self._part(moving_values, start),
            inside=inside,
            body=inside * (codes[0] != OUTSIDE),
            codes=codes,
            embeddings=(maps[0], maps[1]) if maps else None,
        )

    def _part(self, values: Tensor, start: tuple[int, ...], stride: int = 1) -> Tensor:
        cuts = zip(start, self.config.pairs.shape, strict=True)
        z, y, x = (slice(first // stride, (first + length) // stride) for first, length in cuts)
        return values[:, :, z, y, x]

    def _maps(self, volume: FramedVolume, start: tuple[int, ...]) -> Embeddings:
        fine, coarse = (
            self._part(values, start, stride).float()
            for values, stride in zip(volume.embeddings, STRIDES, strict=True)
        )
        return fine, coarse

    def deformed(self, index: int, generator: torch.Generator) -> Pair:
        """A crop, and the same deformed by a smooth random field, with noise in both."""
        config = self.config.pairs
        plain = self._between(index, index, self._cut(generator))
        control = torch.randn((1, 3, *config.elastic_grid), generator=generator) * (config.elastic / SPACING)
        known = functional.interpolate(control, size=config.shape, mode="trilinear", align_corners=True)
        known = average(known, 5, padding=2)
        reached = identity_positions(config.shape) + known
        size = reached.new_tensor(config.shape[::-1]).view(1, 3, 1, 1, 1)
        shown = ((reached >= 0) & (reached <= size - 1)).all(dim=1, keepdim=True).float()
        fixed, moving = (
            image + NOISE * torch.randn(image.shape, generator=generator)
            for image in (warp(plain.moving, known), plain.moving)
        )
        body = shown * warp((plain.codes[0] != OUTSIDE).float(), known).round()
        return Pair(plain.names[:1], fixed, moving, shown, body, plain.codes, None, known)
