"""How alike two volumes are under many affine maps at once, differentiably, at points inside the bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..grid import Grid
from ..solvers.recorder import Recorder
from .volumes import CoarseVolume, world_points

BINS = 24
_LEAST_COMMON_WEIGHT = 1e-3


@dataclass(frozen=True, eq=False)
class Likeness:
    """Similarity and overlap of every map of a batch.

    The score is the similarity weighed by the square root of the overlap, as in the search.

    Args:
        similarity: (B,) between 0 or -1 and 1, the mean of both directions.
        overlap: (B,) fraction of the sampled points whose partner is known, the mean of both directions, where
            the smaller body counts as the whole.
    """

    similarity: Tensor
    overlap: Tensor

    @property
    def score(self) -> Tensor:
        return self.similarity * self.overlap.clamp(0, 1).sqrt()


class PairLikeness:
    """Both volumes with and without the outline of their bodies, ready to be compared.

    The outline says much, but what looks like it may be the edge of a field of view; the interior alone is blind
    to whole limbs. A map must please both, so their similarities and overlaps are averaged.

    Args:
        fixed: a coarse volume.
        moving: a coarse volume of the same spacing.
        number: of points in each volume, at most.
        seed: of the choice of points.
    """

    def __init__(self, fixed: CoarseVolume, moving: CoarseVolume, number: int = 6000, seed: int = 0) -> None:
        self.correlation = fixed.is_ct == moving.is_ct and fixed.is_ct
        self._device = fixed.values.device
        self._parts = [
            _MaskedLikeness(fixed, moving, number // 2, seed, self.correlation),
            _MaskedLikeness(fixed.interior, moving.interior, number // 2, seed + 2, self.correlation),
        ]

    def __call__(self, matrices: Tensor) -> Likeness:
        """Compare under maps (B, 4, 4) from fixed to moving world, in double precision.

        What they lead to is given where the maps are: a GPU is slow at working with single matrices.
        """
        found = self._under(both_ways(matrices).to(self._device))
        return Likeness(found.similarity.to(matrices.device), found.overlap.to(matrices.device))

    def differentiated(self, both: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """What gives the scores (B,) under maps as `both_ways` returns them, and their gradient by these.

        Args:
            both: (2, B, 4, 4) maps, as many as will be asked for.
        """
        if self._device.type != "cuda":
            return self._scores_and_gradient
        return _Recorded(self._scores_and_gradient, both, self._device)

    def _scores_and_gradient(self, both: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            there = both.detach().to(self._device).requires_grad_()
            score = self._under(there).score
            (gradient,) = torch.autograd.grad(score.sum(), there)
        return score.detach().to(both.device), gradient.to(both.device)

    def _under(self, both: Tensor) -> Likeness:
        first, second = (part(*both) for part in self._parts)
        return Likeness((first[0] + second[0]) / 2, (first[1] + second[1]) / 2)


def both_ways(matrices: Tensor) -> Tensor:
    """Maps (B, 4, 4) and their inverses, (2, B, 4, 4)."""
    return torch.stack([matrices, torch.linalg.inv(matrices)])


class _Recorded:
    """Scores and gradients by a CUDA graph, into which hundreds of small kernels are recorded once.

    Args:
        work: what to record.
        both: what it is first done with.
        device: where it computes.
    """

    def __init__(
        self, work: Callable[[Tensor], tuple[Tensor, Tensor]], both: Tensor, device: torch.device
    ) -> None:
        self._work = work
        self._given = both.detach().to(device)
        self._recorder = Recorder.of(device)
        self._recorder.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._recorder.stream):
            self._found = [result.clone() for result in work(self._given)]
            self._graph = self._recorder.record(self._again)

    def __call__(self, both: Tensor) -> tuple[Tensor, Tensor]:
        with torch.cuda.stream(self._recorder.stream):
            self._given.copy_(both)
            if self._graph is None:
                self._again()
            else:
                self._graph.replay()
            score, gradient = (result.to(both.device) for result in self._found)
        return score, gradient

    def _again(self) -> None:
        for kept, result in zip(self._found, self._work(self._given), strict=True):
            kept.copy_(result)


class _MaskedLikeness:
    """Both volumes, sampled at points of both masks.

    Points of the fixed volume are looked up in the moving one and the other way round, so that a map that
    shrinks one volume into a corner of the other gains nothing.

    Args:
        fixed: a coarse volume.
        moving: a coarse volume of the same spacing.
        number: of points in each volume, at most.
        seed: of the choice of points.
    """

    def __init__(
        self, fixed: CoarseVolume, moving: CoarseVolume, number: int, seed: int, correlation: bool
    ) -> None:
        self._from_fixed = _Lookup(fixed, moving, number, seed, correlation)
        self._from_moving = _Lookup(moving, fixed, number, seed + 1, correlation)
        smaller = min(float(fixed.near.sum()), float(moving.near.sum()))
        sizes = float(fixed.near.sum()), float(moving.near.sum())
        self._overlap_scale = [size / max(smaller, 1.0) for size in sizes]

    def __call__(self, matrices: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity and overlap (B,) under maps (B, 4, 4) and their inverses."""
        forward, common = self._from_fixed(matrices)
        backward, common_back = self._from_moving(inverse)
        first, second = self._overlap_scale
        return (forward + backward) / 2, (common * first + common_back * second) / 2


class _Lookup:
    """Points of one volume with their values, looked up in the other volume."""

    def __init__(
        self, source: CoarseVolume, target: CoarseVolume, number: int, seed: int, correlation: bool
    ) -> None:
        points = world_points(source, source.near, number, seed)
        device = source.values.device
        x, y, z = torch.from_numpy(source.grid.to_voxel(points)).round().long().to(device).unbind(-1)
        self._values = source.values[z, y, x]
        self._correlation = correlation
        ones = torch.ones(len(points), 1, dtype=torch.float64)
        self._points = torch.cat([torch.from_numpy(points), ones], dim=1).to(device)
        # The mask rides along as a second channel of one lookup.
        self._target = torch.stack([target.values, target.known.float()])[None]
        self._to_cube = _world_to_cube(target.grid).to(device)

    def __call__(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        cube = torch.einsum("bij,nj->bni", (self._to_cube @ matrices)[:, :3], self._points).float()
        batch = len(matrices)
        sampled = functional.grid_sample(
            self._target.expand(batch, -1, -1, -1, -1),
            cube[:, None, None],
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )[:, :, 0, 0]
        weight = (sampled[:, 1] * (cube.abs() <= 1).all(dim=-1)).detach()
        overlap = weight.mean(dim=1)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=_LEAST_COMMON_WEIGHT * weight.shape[1])
        measure = _weighted_correlation if self._correlation else _shared_information
        return measure(self._values, sampled[:, 0], weight), overlap


def _world_to_cube(grid: Grid) -> Tensor:
    """4x4 from world mm to coordinates that run from -1 to 1 over the box."""
    size = torch.tensor(grid.size, dtype=torch.float64)
    to_cube = torch.diag(torch.cat([2 / size, torch.ones(1, dtype=torch.float64)]))
    to_cube[:3, 3] = 1 / size - 1
    return to_cube @ torch.from_numpy(grid.world_to_voxel)


def _weighted_correlation(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    a = first - (weight * first).sum(dim=1, keepdim=True)
    b = second - (weight * second).sum(dim=1, keepdim=True)
    covariance = (weight * a * b).sum(dim=1)
    variances = (weight * a.square()).sum(dim=1) * (weight * b.square()).sum(dim=1)
    return covariance / variances.clamp(min=1e-10).sqrt()


def _shared_information(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Mutual information over the mean entropy, between 0 and 1 (Studholme et al. 1999, rescaled).

    Args:
        first: (N,) values between 0 and 1.
        second: (B, N) values between 0 and 1.
        weight: (B, N).
    """
    joint = weight.new_zeros(len(second), BINS * BINS)
    for row, row_weight in _neighboring_bins(first):
        for column, column_weight in _neighboring_bins(second):
            joint = joint.scatter_add(1, row * BINS + column, row_weight * column_weight * weight)
    joint = joint / joint.sum(dim=1, keepdim=True).clamp(min=1e-6)
    square = joint.view(-1, BINS, BINS)
    rows, columns = _entropy(square.sum(dim=2)), _entropy(square.sum(dim=1))
    return 2 * (rows + columns - _entropy(joint)) / (rows + columns).clamp(min=1e-6)


def _neighboring_bins(values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two bins that each value lies between, with its linear share in each."""
    position = values.clamp(0, 1) * (BINS - 1)
    lower = position.detach().floor().clamp(max=BINS - 2)
    share = position - lower
    return [(lower.long(), 1 - share), (lower.long() + 1, share)]


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * (probabilities + 1e-10).log()).sum(dim=-1)
