"""From cached volumes to a batch of augmented views, reproducibly per iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.architectures import find_architecture
from ..networks.sam_lite import FINE_STRIDE
from .cache import CachedVolume
from .config import TrainingConfig
from .photometric import PhotometricAugmentation
from .pseudo_pairs import PseudoPair, PseudoPairs
from .views import Source, View, cut_view, draw_placements


@dataclass(frozen=True)
class Batch:
    """Views of 2 * pairs volumes: `views[v]` are the two views of `volumes[v]`; volumes 2p and 2p+1 are a pair.

    `images` (2 * volumes, 1, d, h, w), preprocessed, in the same order. `pseudo_pairs` holds, by the index of its
    first volume, what is known of a pair whose subjects' places correspond.
    """

    volumes: list[CachedVolume]
    views: list[tuple[View, View]]
    images: Tensor
    pseudo_pairs: dict[int, PseudoPair] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the volumes."""
        return [volume.name for volume in self.volumes]


@dataclass(frozen=True)
class _Subjects:
    """Two volumes drawn together; with a pseudo-pair, also the places (3,) in mm around which to cut the views."""

    volumes: tuple[CachedVolume, CachedVolume]
    pseudo_pair: PseudoPair | None = None
    anchors: tuple[Tensor | None, Tensor | None] = (None, None)


class BatchSource:
    """Draws batches. The batch of an iteration depends on the seed, the iteration and the process only.

    Without pseudo-pairs, other random numbers are drawn than with.
    """

    def __init__(
        self,
        volumes: list[CachedVolume],
        config: TrainingConfig,
        device: torch.device,
        process: int = 0,
        pseudo_pairs: PseudoPairs | None = None,
    ) -> None:
        self.pseudo_pairs = pseudo_pairs
        self.config = config
        self.device = device
        self.process = process
        self.architecture = find_architecture(config.architecture)
        self.resident: dict[str, Source] = {}
        self.regions: dict[str, list[CachedVolume]] = {}
        for volume in volumes:
            self.regions.setdefault(volume.region, []).append(volume)
        self.weights = torch.tensor([self._weight(name) for name in self.regions], dtype=torch.float64)

    def generator(self, iteration: int) -> torch.Generator:
        """The random numbers of one iteration in this process."""
        return seeded_generator(self.config.seed, iteration, self.process)

    def draw(self, generator: torch.Generator) -> Batch:
        """Draw volumes, cut and change their views."""
        drawn = [self._draw_subjects(generator) for _ in range(self.config.pairs)]
        volumes = [volume for subjects in drawn for volume in subjects.volumes]
        anchors = [anchor for subjects in drawn for anchor in subjects.anchors]
        views, images = [], []
        for volume, anchor in zip(volumes, anchors, strict=True):
            source = self._load(volume)
            placements = draw_placements(source, self.config.views, generator, anchor)
            pair = [
                self._augmented(cut_view(source, place, self.config.views.shape), generator)
                for place in placements
            ]
            views.append((pair[0], pair[1]))
            images += [pair[0].image, pair[1].image]
        pseudo_pairs = {
            2 * index: subjects.pseudo_pair
            for index, subjects in enumerate(drawn)
            if subjects.pseudo_pair is not None
        }
        return Batch(volumes, views, self.architecture.preprocess["CT"](torch.cat(images)), pseudo_pairs)

    def _augmented(self, view: View, generator: torch.Generator) -> View:
        image, kept = PhotometricAugmentation(self.config.photometric, generator)(view.image)
        kept = kept[
            FINE_STRIDE // 2 :: FINE_STRIDE, FINE_STRIDE // 2 :: FINE_STRIDE, FINE_STRIDE // 2 :: FINE_STRIDE
        ]
        return View(image, view.mesh, view.codes, view.visible & kept, view.matrix)

    def _draw_subjects(self, generator: torch.Generator) -> _Subjects:
        region = list(self.regions)[int(torch.multinomial(self.weights, 1, generator=generator))]
        if self.pseudo_pairs is not None:
            listed = self._draw_listed(self.pseudo_pairs, region, generator)
            if listed is not None:
                return listed
        members = self.regions[region]
        first = int(torch.randint(len(members), (), generator=generator))
        others = [volume for volume in members if volume.subject != members[first].subject] or members
        second = int(torch.randint(len(others), (), generator=generator))
        return _Subjects((members[first], others[second]))

    def _draw_listed(self, pseudo_pairs: PseudoPairs, region: str, generator: torch.Generator) -> _Subjects | None:
        """A pseudo-pair of the region, as often as the configuration says and as there are any."""
        if float(torch.rand((), generator=generator)) >= self.config.pseudo_pair_probability:
            return None
        pair = pseudo_pairs.draw(region, generator)
        if pair is None:
            return None
        anchors = pair.draw_anchors(generator)
        return _Subjects(pseudo_pairs.volumes_of(pair), pseudo_pairs.resident(pair, self.device), anchors)

    def _load(self, volume: CachedVolume) -> Source:
        return load_source(volume, self.device, self.resident)

    def _weight(self, region: str) -> float:
        return self.config.region_weights.get(region, math.sqrt(len(self.regions[region])))


def seeded_generator(seed: int, iteration: int, process: int) -> torch.Generator:
    """The random numbers of one iteration of a run in one of its processes."""
    mixed = (seed * 1_000_003 + iteration) * 1_009 + process
    return torch.Generator().manual_seed(mixed % 2**63)


def load_source(volume: CachedVolume, device: torch.device, resident: dict[str, Source]) -> Source:
    """Memory-mapped on the CPU; on a GPU every volume stays in `resident` once used, as int16 and uint8."""
    if volume.name in resident:
        return resident[volume.name]
    image = torch.from_numpy(volume.image()).to(device)[None, None]
    codes = torch.from_numpy(volume.labels()).to(device)[None, None]
    source = Source(image, codes, volume.spacing)
    if device.type != "cpu":
        resident[volume.name] = source
    return source
