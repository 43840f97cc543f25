"""Pairs of views with known correspondence, as the query point network is asked about them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..methods.quiz_inputs import Cube, QuizVolume, cube_embedding, cube_image, shared_cubes
from .cache import CachedVolume
from .quiz_config import QuizPairConfig
from .quiz_views import QuizView, read_view, view_file

_ATTEMPTS = 20
VIEWS_KEPT = 64
"""In the memory of a computer; that of a GPU for training holds them all."""

_VAGUE_SCHEMES = ("auto",)
"""Structures of these schemes have no center worth finding: lungs and bones end where the scan does."""

_ORDERS = list(permutations(range(3)))


@dataclass(frozen=True)
class QuizPair:
    """One or more pairs and what is asked about them.

    Args:
        names: of the views.
        reference, search: (b, 1, s, s, s) between 0 and 1.
        embeddings: of both, (b, E, t, t, t), or None.
        queries: (b, n, 3) positions in the references' cubes.
        targets: (b, n, 3) their partners in the searched ones'.
        shown: (b, n) bool, whether the searched volume shows the partner; else the target is nothing.
    """

    names: list[str]
    reference: Tensor
    search: Tensor
    embeddings: tuple[Tensor, Tensor] | None
    queries: Tensor
    targets: Tensor
    shown: Tensor

    def to(self, device: torch.device) -> QuizPair:
        """The same on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        pair = self.embeddings
        return replace(
            self, **tensors, embeddings=None if pair is None else (pair[0].to(device), pair[1].to(device))
        )


class QuizPairs:
    """Draws pairs from the views that lie in a folder.

    Args:
        volumes: of which there may be views.
        folder: where they lie.
        count: views per volume, at most.
        config: how pairs are drawn.
        with_embedding: whether the network takes one.
        device: where volumes and embeddings are kept and cut out.
        kept: so many views stay in memory.

    Raises:
        InputError: if there is no pair of views.
    """

    def __init__(
        self,
        volumes: list[CachedVolume],
        folder: Path,
        count: int,
        config: QuizPairConfig,
        with_embedding: bool,
        device: torch.device | str = "cpu",
        kept: int = VIEWS_KEPT,
    ) -> None:
        self.config = config
        self._device = device
        self._most_kept = kept
        self.with_embedding = with_embedding
        self._folder = folder
        self._numbers = {
            volume.name: [n for n in range(count) if (folder / view_file(volume, n)).is_file()]
            for volume in volumes
        }
        self.volumes = [volume for volume in volumes if len(self._numbers[volume.name]) > 1]
        if not self.volumes:
            raise InputError(f"There are no two views of one volume in {folder}.")
        self._kept: OrderedDict[str, QuizView | None] = OrderedDict()
        self._partners = {volume.name: self._comparable(volume) for volume in self.volumes}

    def draw(self, batch: int, generator: torch.Generator) -> QuizPair:
        """Draw so many pairs.

        Raises:
            InputError: if no usable pair is found in many attempts.
        """
        return _together([self._draw_one(generator) for _ in range(batch)])

    def _draw_one(self, generator: torch.Generator) -> QuizPair:
        for _ in range(_ATTEMPTS):
            volume = self.volumes[_below(len(self.volumes), generator)]
            others = self._partners[volume.name]
            between = bool(others) and _happens(self.config.between_subjects, generator)
            other = others[_below(len(others), generator)] if between else volume
            views = self._draw_views(volume, other, generator)
            if views is None:
                continue
            places = self._centers(*views, generator) if between else self._same_places(*views, generator)
            if places is not None:
                return self._asked(*views, *places, generator)
        raise InputError(f"The views in {self._folder} do not show enough of the same anatomy.")

    def _comparable(self, volume: CachedVolume) -> list[CachedVolume]:
        own = structures_of(volume)
        return [
            other
            for other in self.volumes
            if other.subject != volume.subject and len(own & structures_of(other)) >= self.config.least_structures
        ]

    def _draw_views(
        self, first: CachedVolume, second: CachedVolume, generator: torch.Generator
    ) -> tuple[QuizView, QuizView] | None:
        numbers = [self._numbers[volume.name] for volume in (first, second)]
        one = numbers[0][_below(len(numbers[0]), generator)]
        rest = [n for n in numbers[1] if first is not second or n != one]
        two = rest[_below(len(rest), generator)]
        views = self._view(first, one), self._view(second, two)
        return None if views[0] is None or views[1] is None else (views[0], views[1])

    def _view(self, volume: CachedVolume, number: int) -> QuizView | None:
        name = view_file(volume, number)
        if name not in self._kept:
            self._kept[name] = read_view(self._folder / name, volume, self._device)
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return self._kept[name]

    def _same_places(
        self, reference: QuizView, search: QuizView, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Places in both views, and whether they are shown in the second."""
        queries, places = reference.draw_places(self.config.queries, generator)
        targets, shown = search.find(places)
        return (queries, targets, shown) if len(queries) and int(shown.sum()) >= len(shown) // 8 else None

    def _centers(
        self, reference: QuizView, search: QuizView, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Centers of the structures that both views show whole, each as often as it takes."""
        ends = []
        names = sorted(structures_of(reference.source) & structures_of(search.source))
        for view in (reference, search):
            landmarks = torch.tensor([view.source.landmarks[name] for name in names])
            positions, shown = view.find(landmarks.flatten(0, 1))
            ends.append((positions.view(len(names), -1, 3)[:, 0], shown.view(len(names), -1).all(dim=1)))
        whole = torch.nonzero(ends[0][1] & ends[1][1])[:, 0]
        if len(whole) < self.config.least_structures:
            return None
        chosen = whole[torch.randint(len(whole), (self.config.queries,), generator=generator)]
        return ends[0][0][chosen], ends[1][0][chosen], torch.ones(len(chosen), dtype=torch.bool)

    def _asked(
        self,
        reference: QuizView,
        search: QuizView,
        queries: Tensor,
        targets: Tensor,
        shown: Tensor,
        generator: torch.Generator,
    ) -> QuizPair:
        config = self.config
        volumes = reference.volume, search.volume
        cubes = _moved(shared_cubes(*volumes), config, generator)
        images = [cube_image(v, c, config.image_size) for v, c in zip(volumes, cubes, strict=True)]
        pair = QuizPair(
            [reference.name, search.name],
            images[0],
            images[1],
            self._embeddings(volumes, cubes) if self.with_embedding else None,
            torch.from_numpy(cubes[0].to_cube(queries.numpy())).float()[None],
            torch.from_numpy(cubes[1].to_cube(targets.numpy())).float()[None],
            shown[None],
        )
        return _turned(pair, config.change_probability, generator) if config.turns else pair

    def _embeddings(
        self, volumes: tuple[QuizVolume, QuizVolume], cubes: tuple[Cube, Cube]
    ) -> tuple[Tensor, Tensor]:
        size = self.config.embedding_size
        return cube_embedding(volumes[0], cubes[0], size), cube_embedding(volumes[1], cubes[1], size)


def structures_of(volume: CachedVolume) -> set[str]:
    """Names of the structures that have a center."""
    return {name for name in volume.landmarks if not name.startswith(_VAGUE_SCHEMES)}


def _moved(cubes: tuple[Cube, Cube], config: QuizPairConfig, generator: torch.Generator) -> tuple[Cube, Cube]:
    """Cubes shifted each for itself, and both as much too large."""
    scale = 1.0
    if _happens(config.change_probability, generator):
        scale = 1 + (config.scaling - 1) * float(torch.rand((), generator=generator))
    moved = []
    for cube in cubes:
        shift = np.zeros(3)
        if _happens(config.change_probability, generator):
            shift = (torch.rand(3, generator=generator).double().numpy() * 2 - 1) * config.translation * cube.side
        moved.append(Cube(cube.center + cube.axes @ shift, cube.axes, cube.side * scale))
    return moved[0], moved[1]


def _turned(pair: QuizPair, probability: float, generator: torch.Generator) -> QuizPair:
    """Both volumes of a pair with axes permuted and flipped alike."""
    order = _ORDERS[_below(len(_ORDERS), generator)] if _happens(probability, generator) else (0, 1, 2)
    flipped = [axis for axis in range(3) if _happens(probability, generator)]
    signs = torch.tensor([-1.0 if axis in flipped else 1.0 for axis in range(3)])

    def volume(values: Tensor) -> Tensor:
        # Axis x of a position is the last dimension of a volume.
        values = values.permute(0, 1, *(4 - order[axis] for axis in (2, 1, 0)))
        return values.flip([4 - axis for axis in flipped]) if flipped else values

    def points(values: Tensor) -> Tensor:
        return values[..., list(order)] * signs

    return replace(
        pair,
        reference=volume(pair.reference),
        search=volume(pair.search),
        queries=points(pair.queries),
        targets=points(pair.targets),
    )


def _together(pairs: list[QuizPair]) -> QuizPair:
    both = [pair.embeddings for pair in pairs if pair.embeddings is not None]
    return QuizPair(
        [name for pair in pairs for name in pair.names],
        torch.cat([pair.reference for pair in pairs]),
        torch.cat([pair.search for pair in pairs]),
        (torch.cat([e[0] for e in both]), torch.cat([e[1] for e in both])) if both else None,
        torch.cat([pair.queries for pair in pairs]),
        torch.cat([pair.targets for pair in pairs]),
        torch.cat([pair.shown for pair in pairs]),
    )


def _happens(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
