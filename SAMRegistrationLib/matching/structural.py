"""Points matched together with what lies around them (structural matching).

The published method (UAE, fixed-point matching) matches the neighborhood of a point too, fits an affine map to
these correspondences robustly and applies it to the point, so that a single wrong match does no harm. Here the map
is fitted twice: to a wide lattice of neighbors that are looked for everywhere, then to a finer one that is looked
for near where the first map puts it. The place that it predicts is then weighed against the likeness of the
point's own vector: between two subjects an affine map meets the neighbors less well, and the vector says more.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..features.base import Features
from ..grid import FloatArray
from ..image import Image
from .chunks import AtOnce
from .index import FeatureIndex, interpolated_vectors
from .kept import indexed
from .local_affine import LocalAffines, fit_local_affines
from .nearest import Matches, cycle_errors, partners
from .window import expected_positions, most_similar_near

LEAST_NEIGHBORS = 5
"""With fewer neighbors than this a point is matched by its own vector."""

_WIDE_SCALES_MM = 15.0, 5.0
_FINE_SCALES_MM = 8.0, 4.0
_LARGEST_STRETCH = 1.4
_POINTS_AT_ONCE = AtOnce(cpu=128, elsewhere=512)


@dataclass(frozen=True)
class Lattice:
    """Neighbors of a point, the point among them.

    Args:
        steps: to each side along every axis.
        spacing_mm: length of a step.
        alternating: only every second place, like the squares of one color on a chessboard.
    """

    steps: int
    spacing_mm: float
    alternating: bool = False

    def offsets(self) -> FloatArray:
        """(n, 3) in mm."""
        places = np.array(list(product(range(-self.steps, self.steps + 1), repeat=3)))
        if self.alternating:
            places = places[places.sum(axis=1) % 2 == 0]
        return places * self.spacing_mm


WIDE = Lattice(1, 12.0)
FINE = Lattice(2, 8.0, alternating=True)


@dataclass(frozen=True, eq=False)
class StructuralMatches(Matches):
    """Matches that say how well the neighbors agree.

    Args:
        support: (n,) mean weight of the neighbors in the robust fit, 0 to 1; 0 where a point was matched alone.
        residual: (n,) median distance in mm of the neighbors' matches from the local affine map; infinite where a
            point was matched alone.
    """

    support: FloatArray
    residual: FloatArray

    def select(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> StructuralMatches:
        """The matches chosen by a boolean array or by indices."""
        chosen = super().select(keep)
        return StructuralMatches(**vars(chosen), support=self.support[keep], residual=self.residual[keep])


def match_structurally(
    points_world: ArrayLike,
    fixed: Features | FeatureIndex,
    moving: Features | FeatureIndex,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    *,
    wide: Lattice = WIDE,
    fine: Lattice | None = FINE,
    tolerance: float = 1.5,
) -> StructuralMatches:
    """The partner of every point, found with its neighbors.

    Args:
        points_world: (n, 3) in the fixed world, LPS mm.
        fixed: features of the fixed volume.
        moving: features of the moving volume, of the same extractor.
        fixed_mask: neighbors outside it are left out, and partners of partners are looked for in it.
        moving_mask: where partners are looked for.
        wide: neighbors that are looked for everywhere.
        fine: neighbors that are then looked for near where these say; None to do without.
        tolerance: how far from where its neighbors say a point may be, in multiples of their median residual; 0
            for exactly there.

    Raises:
        ValueError: if the features have different numbers of channels.
    """
    source, target = indexed(fixed, fixed_mask), indexed(moving, moving_mask)
    points = np.asarray(points_world, dtype=np.float64).reshape(-1, 3)
    matched, score = partners(points, source, target)
    support, residual = np.zeros(len(points)), np.full(len(points), np.inf)
    at_once = _POINTS_AT_ONCE.on(target.vectors.device)
    with torch.no_grad():
        for first in range(0, len(points), at_once):
            rows = np.arange(first, min(first + at_once, len(points)))
            fit, enough = _fit_lattices(points[rows], source, target, wide, fine)
            queries = source.vectors_at(points[rows])
            width = tolerance * fit.residual
            found, likeness, possible = expected_positions(target, queries, fit.mapped, width)
            kept = (enough & possible).cpu().numpy()
            rows = rows[kept]
            for values, new in (
                (matched, found),
                (score, likeness),
                (support, fit.support),
                (residual, fit.residual),
            ):
                values[rows] = new.cpu().numpy()[kept]
    cycle_error = cycle_errors(points, matched, source, target)
    return StructuralMatches(points, matched, score, cycle_error, support, residual)


def _fit_lattices(
    points: FloatArray, source: FeatureIndex, target: FeatureIndex, wide: Lattice, fine: Lattice | None
) -> tuple[LocalAffines, Tensor]:
    """The local maps, and which of them have enough neighbors."""
    fit, enough = _fitted(points, source, target, wide, None)
    if fine is None:
        return fit, enough
    refined, still_enough = _fitted(points, source, target, fine, fit)
    return refined, enough & still_enough


def _fitted(
    points: FloatArray, source: FeatureIndex, target: FeatureIndex, lattice: Lattice, guess: LocalAffines | None
) -> tuple[LocalAffines, Tensor]:
    offsets = lattice.offsets()
    neighbors = points[:, None] + offsets
    usable = source.allows(neighbors)
    queries = interpolated_vectors(source.vectors, neighbors.reshape(-1, 3))
    device = queries.device
    on_device = torch.from_numpy(points).to(device), torch.from_numpy(offsets).to(device)
    if guess is None:
        world, _ = target.nearest(queries, thorough=False)
        partners = torch.from_numpy(world).to(device).reshape(neighbors.shape)
        scales = _WIDE_SCALES_MM
    else:
        expected = guess.transform(on_device[1])
        reach = _LARGEST_STRETCH * lattice.steps * lattice.spacing_mm
        partners, found = most_similar_near(target, queries.view(*usable.shape, -1), expected, guess.mapped, reach)
        usable = usable & found
        scales = _FINE_SCALES_MM
    return fit_local_affines(*on_device, partners, usable, *scales), usable.sum(dim=1) >= LEAST_NEIGHBORS
