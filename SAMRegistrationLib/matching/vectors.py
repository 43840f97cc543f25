"""The vectors of a volume by voxel, of which no more is stored than a search needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ..features.base import JOINED_SCALE, FeatureMap, Features, scaled_to_join
from ..memory_reuse import own_pages
from ..sampling import Outside, affine_map, between_grids, sample_points

_REACH = 2
"""Voxels around those that are searched whose vectors are stored too: queries and peaks look at neighbors."""


class JoinedVectors:
    """The vectors of `Features.joined`, read voxel by voxel.

    The fine ones are those of the features themselves. The coarse ones, interpolated, would take as much again:
    they are stored where a volume is searched, and interpolated anew where a query asks for others. A GPU, which
    waits for every decision, has all of them joined.

    Args:
        features: of the volume.
        searched: (z, y, x) bool, the voxels that are looked through.
    """

    def __init__(self, features: Features, searched: Tensor) -> None:
        self.grid = features.fine.grid
        self._features = features
        self._places: Tensor | None = None
        if features.coarse is None or searched.device.type != "cpu":
            self._rows = _rows_of(features.joined())
            return
        self._rows = _rows_of(features.fine)
        near = _grown(searched, _REACH)
        self._places = torch.full((near.numel(),), -1, dtype=torch.int32)
        chosen = near.flatten()
        self._places[chosen] = torch.arange(int(chosen.sum()), dtype=torch.int32)
        shape = int(chosen.sum()), features.coarse.channels
        with own_pages(shape[0] * shape[1] * self._rows.itemsize):
            self._coarse = self._rows.new_empty(shape)
        first = 0
        for part, vectors in features.coarse_on_fine():
            rows = scaled_to_join(vectors[near[part]])
            self._coarse[first : first + len(rows)] = rows
            first += len(rows)

    @property
    def channels(self) -> int:
        """Length of the vectors."""
        return int(self._rows.shape[1]) + (0 if self._places is None else int(self._coarse.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        return self._rows.device

    @property
    def nbytes(self) -> int:
        """What they take, the features included."""
        return self._rows.nbytes + (0 if self._places is None else self._places.nbytes + self._coarse.nbytes)

    def at(self, rows: Tensor, *, searched_only: bool = False) -> Tensor:
        """The vectors (n, C) of voxels (n,), counted with x fastest.

        Args:
            rows: of the voxels.
            searched_only: those of other voxels do not matter and may be any.
        """
        if self._places is None:
            return self._rows.index_select(0, rows)
        vectors = self._rows.new_empty(len(rows), self.channels)
        fine, coarse = vectors.split([self._rows.shape[1], self._coarse.shape[1]], dim=1)
        torch.index_select(self._rows, 0, rows, out=fine)
        fine *= JOINED_SCALE
        places = self._places.index_select(0, rows)
        missing = None if searched_only else places < 0
        torch.index_select(self._coarse, 0, places.clamp_(min=0), out=coarse)
        if missing is not None and bool(missing.any()):
            coarse[missing] = self._interpolated(rows[missing])
        return vectors

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """All vectors (z, y, x, C), some slices after the other, with the range of the slices."""
        return self._features.joined_slabs()

    def _interpolated(self, rows: Tensor) -> Tensor:
        """The coarse vectors of any voxels."""
        coarse = self._features.coarse
        assert coarse is not None
        _, height, width = self.grid.shape
        voxel = torch.stack([rows % width, rows // width % height, rows // (height * width)]).double()
        within = affine_map(between_grids(self.grid, coarse.grid), voxel)
        return scaled_to_join(sample_points(coarse.data, within.T, Outside.EDGE).float()).to(self.dtype)


def vectors_of(features: FeatureMap) -> JoinedVectors:
    """The vectors of a single map."""
    return JoinedVectors(Features(features), torch.zeros(features.grid.shape, dtype=torch.bool))


def _rows_of(features: FeatureMap) -> Tensor:
    """(z*y*x, C), x fastest; a view where the channels of a voxel lie side by side, which is fast to read."""
    data = features.data.contiguous(memory_format=torch.channels_last_3d)
    return data[0].flatten(1).T


def _grown(mask: Tensor, reach: int) -> Tensor:
    """A mask (z, y, x) with all voxels that are no more than so many away along each axis."""
    grown = mask[None, None].float()
    for window in ((1, 1, 0), (1, 0, 1), (0, 1, 1)):
        padding = [reach * (1 - n) for n in window]
        grown = functional.max_pool3d(grown, [2 * n + 1 for n in padding], 1, padding)
    return grown[0, 0] > 0.5
