"""Points of one volume found in another, each with what speaks for and against the answer.

Three methods stand behind one call. "sam" matches embeddings (see `matching`); "quiz" asks the query point network
(see `quiz`); "joint" lets the network propose and the embedding refine (see `joint_matching`). Every point gets an
answer: one that lies outside the volume, or in air, is put where the map of the whole body puts it, with no
confidence and a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..alignment.feature_alignment import TOLERANCE_MM, body_grid
from ..alignment.refinement import Model
from ..alignment.robust_fit import Fit, robust_fit
from ..body import Regions
from ..errors import InputError
from ..features.base import Features
from ..grid import FloatArray
from ..image import Image
from ..matching import FeatureIndex, likeness_map, match_points, match_structurally
from ..sampling import Interpolation
from ..transforms import AffineTransform

METHODS = ("sam", "quiz", "joint")

LEAST_SUPPORT = 0.2
LEAST_SCORE = 0.35
LARGEST_CYCLE_MM = 25.0
"""Beyond these an answer is called doubtful."""

_BODY_POINTS = 300
_CYCLE_MM = 20.0

OUTSIDE = "outside the fixed volume; placed by the map of the whole body"
AIR = "in air, outside the body; placed by the map of the whole body"
NOT_SHOWN = "probably not shown by the moving volume"
UNSUPPORTED = "the neighbors do not agree"
UNLIKE = "nothing in the moving volume looks like this place"
NO_RETURN = "matched back, it ends elsewhere"


@dataclass(frozen=True, eq=False)
class MatchedPoints:
    """Points and what is said about each.

    Args:
        points: (n, 3) in the fixed world, LPS mm.
        matched: (n, 3) in the moving world.
        score: (n,) cosine similarity of the embeddings at both ends; 0 where a point has no embedding of its own.
        support: (n,) 0 to 1, how well the neighbors agree; 0 where none was asked.
        cycle_mm: (n,) distance between a point and the partner of its partner.
        reason: n sentences that say why an answer is doubtful, empty where it is not.
    """

    points: FloatArray
    matched: FloatArray
    score: FloatArray
    support: FloatArray
    cycle_mm: FloatArray
    reason: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True, eq=False)
class EmbeddedVolume:
    """A volume, its body and its features.

    Args:
        image: as it was read.
        features: embeddings with a coarse map.
    """

    image: Image
    features: Features

    @cached_property
    def regions(self) -> Regions:
        return Regions.of(self.image)

    @cached_property
    def body(self) -> Image:
        """1 inside the body, 0 outside, at about 4 mm on the CPU."""
        return self.regions.body_image

    @cached_property
    def index(self) -> FeatureIndex:
        """The vectors of the body, ready to be searched; air looks alike everywhere, so it is left out."""
        return FeatureIndex(self.features, self.body)

    def in_body(self, points: FloatArray) -> NDArray[np.bool_]:
        """Which world positions (n, 3) lie in the body."""
        grid = self.body.grid
        x, y, z = np.rint(grid.to_voxel(points)).astype(int).clip(0, np.asarray(grid.size) - 1).T
        inside = self.body.data.cpu().numpy()[z, y, x] > 0.5
        return np.asarray(inside & grid.contains(points))


class PointMatcher:
    """Finds points of one volume in another by their embeddings.

    Args:
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        seed: of the robust fits.
    """

    def __init__(self, fixed: EmbeddedVolume, moving: EmbeddedVolume, seed: int = 0) -> None:
        self.fixed = fixed
        self.moving = moving
        self.seed = seed

    def prepare(self) -> None:
        """Do now what the first points would otherwise have to wait for."""
        _ = self.fixed.index, self.moving.index, self.whole_body

    @property
    def indices(self) -> list[FeatureIndex]:
        """All that is searched, which takes most of the memory."""
        return [self.fixed.index, self.moving.index]

    @cached_property
    def whole_body(self) -> AffineTransform:
        """A linear map of the whole body; where too few matches agree on any, the shift of the bodies' centers."""
        fit = self.body_fit
        if fit is None:
            return AffineTransform.translation(body_center(self.moving) - body_center(self.fixed))
        return fit.transform

    @cached_property
    def body_fit(self) -> Fit | None:
        """The affine map that matched points all over the fixed body agree on; None where too few agree on any."""
        with torch.no_grad():
            found = match_points(
                body_grid(self.fixed.body, most=_BODY_POINTS), self.fixed.index, self.moving.index
            )
        weights = np.clip(found.score, 1e-3, None) * np.exp(-np.square(found.cycle_error / _CYCLE_MM))
        try:
            return robust_fit(found.points, found.matched, weights, Model.AFFINE, TOLERANCE_MM, seed=self.seed)
        except InputError:
            return None

    @property
    def least_support(self) -> float:
        """With less support than this an answer is called doubtful."""
        return LEAST_SUPPORT

    def match(self, points_world: ArrayLike) -> MatchedPoints:
        """The partner of every point (n, 3) in LPS mm."""
        points = np.asarray(points_world, dtype=np.float64).reshape(-1, 3)
        with torch.no_grad():
            return self._explained(self._matched(points))

    def heat_map(self, point_world: ArrayLike) -> Image:
        """The likeness, -1 to 1, of every voxel of the moving volume to a point of the fixed one, on its grid."""
        with torch.no_grad():
            likeness = likeness_map(self.moving.index, self.fixed.index, point_world)
        grid = self.moving.image.grid
        return likeness.resampled(grid, Interpolation.LINEAR, default=0.0)

    def _matched(self, points: FloatArray) -> MatchedPoints:
        """The answers of the method for points wherever they are, without reasons."""
        found = match_structurally(points, self.fixed.index, self.moving.index)
        nothing = ("",) * len(points)
        return MatchedPoints(points, found.matched, found.score, found.support, found.cycle_error, nothing)

    def _explained(self, found: MatchedPoints) -> MatchedPoints:
        """With points that have no embedding of their own placed by the whole body, and every doubt said."""
        inside = self.fixed.image.grid.contains(found.points)
        in_body = inside & self.fixed.in_body(found.points)
        matched, score, support = found.matched.copy(), found.score.copy(), found.support.copy()
        least = self.least_support
        alone = ~inside | (~in_body & (support < least))
        if alone.any():
            matched[alone] = self.whole_body.transform_points(found.points[alone])
            score[alone], support[alone] = 0.0, 0.0
        score[~in_body] = np.minimum(score[~in_body], 0.0)
        cycle = self._cycle(found, matched, alone)
        shown = self.moving.image.grid.contains(self.whole_body.transform_points(found.points))
        reasons = tuple(
            _reason(*values, least_support=least)
            for values in zip(inside, in_body, shown, score, support, cycle, strict=True)
        )
        return MatchedPoints(found.points, matched, score, support, cycle, reasons)

    def _cycle(self, found: MatchedPoints, matched: FloatArray, moved: NDArray[np.bool_]) -> FloatArray:
        cycle = found.cycle_mm.copy()
        if moved.any():
            vectors = self.moving.index.vectors_at(matched[moved])
            returned, _ = self.fixed.index.nearest(vectors)
            cycle[moved] = np.linalg.norm(returned - found.points[moved], axis=1)
        return cycle


def body_center(volume: EmbeddedVolume) -> FloatArray:
    """World position of the center of mass of a volume's body."""
    voxels = np.argwhere(volume.body.data.cpu().numpy() > 0.5)[:, ::-1]
    return np.asarray(volume.body.grid.to_world(voxels.mean(axis=0)))


def _reason(
    inside: bool, in_body: bool, shown: bool, score: float, support: float, cycle: float, *, least_support: float
) -> str:
    doubts: Sequence[tuple[bool, str]] = (
        (not inside, OUTSIDE),
        (not in_body, AIR),
        (score < LEAST_SCORE, UNLIKE),
        (not shown and (support < least_support or cycle > LARGEST_CYCLE_MM), NOT_SHOWN),
        (support < least_support, UNSUPPORTED),
        (cycle > LARGEST_CYCLE_MM, f"{NO_RETURN}, {cycle:.0f} mm away"),
    )
    return next((sentence for applies, sentence in doubts if applies), "")
