"""The terms of instance optimization. Each maps the current field to a scalar that should become small.

Data terms are means over all voxels of their grid, so that a weight map w changes the pull of single voxels
relative to the regularization without changing it elsewhere (a box of weight 1 + a is pulled 1 + a times harder,
the remedy of region-specific optimization for small badly registered regions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.cost_volume import Measure
from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.lncc import lncc
from SAMRegistrationLib.solvers.look import Looks
from SAMRegistrationLib.solvers.ops import warp
from SAMRegistrationLib.solvers.table_sampling import TableSample, channel_table

POSITIONS_PER_CHUNK = 1 << 14
SHORTEST_VECTOR = 1e-6

Gradient = Callable[[torch.Tensor], torch.Tensor]


class Term(Protocol):
    """A differentiable scalar of the field, with its weight in the sum.

    A term that also has a `period` does the same on a GPU every so many iterations, without any number or tensor
    from elsewhere, so that these iterations can be recorded (see `device_descent`).
    """

    weight: float

    def __call__(self, state: FieldState) -> torch.Tensor: ...


class FeatureTerm:
    """Dissimilarity of the fixed features and the moving features at x + u(x).

    One iteration looks at every `lattice`-th voxel along each axis and the next at a shifted lattice, so that many
    voxels (see `lattice_slices`) are seen at the price of few. Moving vectors are interpolated, and for the cosine
    normalized again. For several groups of channels with separate norms use one term for each.

    Args:
        fixed: (1, C, z, y, x); its grid may be finer or coarser than that of the field. No gradient.
        moving: (1, C, z', y', x'), voxels of the same size from the same first voxel.
        weight: of the term.
        voxel_weight: (1, 1, z, y, x), not negative, on the grid of `fixed`.
        lattice: step of the sampled voxels, at least 1.
        measure: `Measure.COSINE` (1 - cosine) or `Measure.SQUARED` (half the squared distance).
        sparse: keep copies of those fixed vectors that are looked at, instead of all: less where `fixed` is not
            needed elsewhere.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        weight: float = 1.0,
        *,
        voxel_weight: torch.Tensor | None = None,
        lattice: int = 2,
        measure: Measure | str = Measure.COSINE,
        sparse: bool = False,
    ) -> None:
        self.weight = weight
        self.shape = tuple(fixed.shape[2:])
        self.measure = Measure(measure)
        if self.measure is Measure.ABSOLUTE:
            raise ValueError("the absolute difference is not a term of instance optimization")
        # Vectors are divided by their lengths when they are looked at: the table of features whose channels lie
        # side by side is then no copy of them.
        self._lengths = _lengths(fixed) if self.measure is Measure.COSINE else None
        self._fixed = channel_table(fixed)
        self._moving = channel_table(moving)
        self._moving_shape = tuple(moving.shape[2:])
        self._looks = Looks(self.shape, lattice, voxel_weight, fixed.device)
        self.period = self._looks.period
        self._places = self._thin_out() if sparse else None

    def _thin_out(self) -> torch.Tensor:
        """Keep the fixed vectors that are looked at; where each voxel's now is, (z*y*x,)."""
        looked_at = self._looks.all_rows()
        places = torch.full((len(self._fixed),), -1, dtype=torch.int32, device=looked_at.device)
        places[looked_at] = torch.arange(len(looked_at), dtype=torch.int32, device=looked_at.device)
        self._fixed = self._fixed.index_select(0, looked_at)
        if self._lengths is not None:
            self._lengths = self._lengths.index_select(0, looked_at)
        return places

    def __call__(self, state: FieldState) -> torch.Tensor:
        look = self._looks.at(state.iteration)
        return _ChunkedMean.apply(self._looks.displaced(state, look), self, look.rows, look.count)

    def fixed_at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The fixed vectors (P, C) of voxels, for the cosine of unit length, and their weights (P,)."""
        places = rows if self._places is None else self._places.index_select(0, rows)
        vectors = self._fixed.index_select(0, places)
        if self._lengths is not None:
            vectors = (vectors.float() / self._lengths.index_select(0, places)).to(vectors.dtype)
        return vectors, self._looks.weights(rows)

    def compared(self, fixed: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, Gradient]:
        """The measure (P,) at moving positions (P, 3) for fixed vectors (P, C), and its gradient.

        The latter gives the gradient (P, 3) by the positions for weights (P, 1) of theirs.
        """
        sample = TableSample(self._moving, self._moving_shape, positions)
        values = sample.values()
        fixed, moving = fixed.float(), values.float()
        if self.measure is Measure.SQUARED:
            difference = moving - fixed
            return 0.5 * difference.square().sum(1), lambda weights: sample.gradient(
                (difference * weights).to(values.dtype)
            )
        length = torch.linalg.vector_norm(moving, dim=1, keepdim=True)
        usable = length.clamp(min=SHORTEST_VECTOR)
        cosine = (fixed * moving).sum(1, keepdim=True).div_(usable)

        def gradient(weights: torch.Tensor) -> torch.Tensor:
            # Of -f.m / |m|; a vector too short to have a direction is divided by a constant.
            turning = (cosine / usable).masked_fill_(length < SHORTEST_VECTOR, 0.0)
            by_moving = (moving * turning).sub_(fixed)
            return sample.gradient(by_moving.to(values.dtype)) * (weights / usable)

        return 1.0 - cosine[:, 0], gradient


def _lengths(features: torch.Tensor) -> torch.Tensor:
    """The lengths (z*y*x, 1) of the vectors of (1, C, z, y, x), some slices after the other."""
    slices = max(1, POSITIONS_PER_CHUNK // math.prod(features.shape[3:]))
    # A sum over channels is several times as fast as torch's norm where they lie far apart.
    squares = [part.float().square().sum(1) for part in features.split(slices, dim=2)]
    return torch.cat(squares, dim=1).view(-1, 1).clamp_(min=1e-24).sqrt_()


class _ChunkedMean(torch.autograd.Function):
    """Mean of a term's dissimilarity over voxels; the gradient is found chunk by chunk on the way.

    Only (P, 3) numbers are kept for the backward pass instead of several (P, C) tables.
    """

    @staticmethod
    def forward(
        ctx: Any, positions: torch.Tensor, term: FeatureTerm, rows: torch.Tensor, count: int
    ) -> torch.Tensor:
        gradient = torch.empty_like(positions)
        total = positions.new_zeros(())
        chunk = POSITIONS_PER_CHUNK if positions.device.type == "cpu" else max(len(rows), 1)
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            fixed, weights = term.fixed_at(rows[part])
            cost, gradient_for = term.compared(fixed, positions[part])
            total += (cost if weights is None else cost * weights).sum() / count
            share = cost.new_full((1, 1), 1.0 / count) if weights is None else weights[:, None] / count
            gradient[part] = gradient_for(share)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.saved_tensors[0] * gradients[0], None, None, None


@dataclass
class CorrelationTerm:
    """1 - local normalized cross-correlation of two intensity volumes (see `lncc`).

    `fixed` and `moving` are (1, 1, z, y, x); their grid may be finer or coarser than that of the field.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    weight: float = 1.0
    radius: int = 3
    voxel_weight: torch.Tensor | None = None

    def __call__(self, state: FieldState) -> torch.Tensor:
        warped = warp(self.moving, state.u_at(self.fixed.shape[2:]))
        share = 1.0 if self.voxel_weight is None else self.voxel_weight.mean()
        return share * (1.0 - lncc(self.fixed, warped, self.radius, self.voxel_weight))


@dataclass
class SquaredDifferenceTerm:
    """Mean squared difference of two intensity volumes (1, 1, z, y, x); scale them to order one."""

    fixed: torch.Tensor
    moving: torch.Tensor
    weight: float = 1.0
    voxel_weight: torch.Tensor | None = None

    def __call__(self, state: FieldState) -> torch.Tensor:
        difference = (self.fixed - warp(self.moving, state.u_at(self.fixed.shape[2:]))).square()
        return (difference if self.voxel_weight is None else difference * self.voxel_weight).mean()


@dataclass
class KeypointTerm:
    """Pull fixed points to their moving counterparts, softly.

    The loss of a point at distance r mm is the Huber loss in units of `softness`: quadratic below, linear above,
    so that a wrong pair pulls no harder than a slightly wrong one.

    Attributes:
        fixed_points: (P, 3) positions (x, y, z) in voxels of the field grid.
        moving_points: (P, 3) counterparts in voxels of the same size, from the moving grid's first voxel.
        voxel_size: (x, y, z) mm of these voxels.
        weight: of the term.
        point_weights: (P,), not negative.
        softness: mm.
    """

    fixed_points: torch.Tensor
    moving_points: torch.Tensor
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    weight: float = 1.0
    point_weights: torch.Tensor | None = None
    softness: float = 2.0

    def __call__(self, state: FieldState) -> torch.Tensor:
        reached = self.fixed_points + sample_field(state.u, self.fixed_points)
        size = torch.tensor(self.voxel_size, device=reached.device)
        distance = ((reached - self.moving_points) * size).square().sum(1).add(1e-12).sqrt() / self.softness
        loss = torch.where(distance < 1.0, 0.5 * distance.square(), distance - 0.5)
        return (loss if self.point_weights is None else loss * self.point_weights).mean()


def sample_field(u: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Displacement (P, 3) at positions (P, 3) in voxels of u, trilinear, differentiable in u."""
    sizes = torch.tensor([u.shape[4], u.shape[3], u.shape[2]], device=u.device, dtype=u.dtype)
    grid = ((2.0 * points.to(u.dtype) + 1.0) / sizes - 1.0).view(1, 1, 1, -1, 3)
    return F.grid_sample(u, grid, padding_mode="border", align_corners=False)[0, :, 0, 0].t()


@dataclass
class AnchorTerm:
    """Mean squared change of the field, for keeping an accepted field outside a region.

    `voxel_weight` (1, 1, z, y, x) on the field grid says where: 1 to hold, 0 to let go.
    """

    voxel_weight: torch.Tensor
    weight: float = 1.0

    def __call__(self, state: FieldState) -> torch.Tensor:
        return (state.residual.square().sum(1, keepdim=True) * self.voxel_weight).mean()


@dataclass
class TrustTerm:
    """How far the field has left the initial one, for an initial field that knows more than the data terms do.

    A voxel that moves by r voxels costs r^2 / (r^2 + softness^2): leaving for a little is not worth it, and where
    the initial field is wrong by voxels the data terms win, since the cost ends at `weight`.
    """

    weight: float = 1.0
    softness: float = 0.5
    period: ClassVar[int] = 1

    def __call__(self, state: FieldState) -> torch.Tensor:
        squared = state.residual.square().sum(1)
        return (squared / (squared + self.softness**2)).mean()


def diffusion(u: torch.Tensor, voxels_per_step: Sequence[float] = (1.0, 1.0, 1.0)) -> torch.Tensor:
    """Mean squared gradient of (B, 3, z, y, x), summed over axes and components, by forward differences.

    Differentiable (once).

    Args:
        u: displacement.
        voxels_per_step: (x, y, z) distance of neighbors in the unit of the displacement.
    """
    return _Diffusion.apply(u, tuple(voxels_per_step))


class _Diffusion(torch.autograd.Function):
    """The gradient is found on the way: the same differences, taken back. Half the work of recording all steps."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, voxels_per_step: tuple[float, ...]) -> torch.Tensor:
        total = u.new_zeros(())
        gradient = torch.zeros_like(u) if ctx.needs_input_grad[0] else None
        for axis, distance in zip((4, 3, 2), voxels_per_step, strict=True):
            steps = u.shape[axis] - 1
            if steps < 1:
                continue
            difference = u.diff(dim=axis)
            weight = u.shape[1] / (difference.numel() * distance**2)
            if gradient is not None:
                gradient.narrow(axis, 1, steps).add_(difference, alpha=2.0 * weight)
                gradient.narrow(axis, 0, steps).sub_(difference, alpha=2.0 * weight)
            total += difference.square_().sum() * weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.saved_tensors[0] * gradients[0], None
