"""Cutting a volume into patches that see enough of their neighborhood to compute what the whole would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from torch import Tensor

Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Patch:
    """A part of a (z, y, x) grid.

    Args:
        core: what the patch is responsible for; the cores of all patches cover the grid once.
        seen: the core and its surroundings within the grid.
        core_in_seen: where the core lies in what is seen.
    """

    core: Region
    seen: Region
    core_in_seen: Region


def patches(shape: Sequence[int], halo: int, most_voxels: int) -> list[Patch]:
    """Patches whose cores have at most so many voxels, cut across the longest edges first.

    Args:
        shape: (z, y, x).
        halo: voxels seen around a core, as far as the grid goes.
        most_voxels: of a core.
    """
    counts = [1, 1, 1]
    while _voxels(lengths := [-(-size // count) for size, count in zip(shape, counts, strict=True)]) > most_voxels:
        counts[lengths.index(max(lengths))] += 1
    z, y, x = (_parts(size, count) for size, count in zip(shape, counts, strict=True))
    return [_patch(core, shape, halo) for core in product(z, y, x)]


def part_of(volume: Tensor, region: Region, margin: int = 0) -> Tensor:
    """A region of a (B, C, z, y, x) volume that has `margin` voxels more at both ends of each axis than the grid.

    The part has as much of a margin.
    """
    z, y, x = (slice(part.start, part.stop + 2 * margin) for part in region)
    return volume[:, :, z, y, x]


def _voxels(lengths: Sequence[int]) -> int:
    return lengths[0] * lengths[1] * lengths[2]


def _parts(size: int, count: int) -> list[slice]:
    borders = [size * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(borders) if stop > start]


def _patch(core: Region, shape: Sequence[int], halo: int) -> Patch:
    seen = [
        slice(max(0, part.start - halo), min(size, part.stop + halo))
        for part, size in zip(core, shape, strict=True)
    ]
    inside = [
        slice(part.start - outer.start, part.stop - outer.start) for part, outer in zip(core, seen, strict=True)
    ]
    return Patch(core, (seen[0], seen[1], seen[2]), (inside[0], inside[1], inside[2]))
