"""Points matched in a moving volume that was first brought to lie like the fixed one.

Embeddings bear moderate turns and other sizes, but match better without: the volumes are matched, the moving one
is resampled under the linear map that the matches agree on, embedded again and matched again (SAME too embeds once
more after SAM-affine). Matches all over the body then tell where a point must be about that its own surroundings
say little of (see `matching.consensus`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from ..features.base import FeatureExtractor, Features
from ..grid import FloatArray, Grid
from ..image import Image
from ..matching import Consensus, FeatureIndex, match_structurally
from ..transforms import AffineTransform
from .point_matching import LEAST_SUPPORT, EmbeddedVolume, MatchedPoints, PointMatcher
from .sam_affine import aligned_volume

CONSENSUS_POINTS = 500
_DOUBTFUL_SHARE = 0.5
_LOWEST_LEAST_SUPPORT = 0.1

MARGIN_MM = 40.0
"""How far beyond the fixed volume the aligned moving volume is kept: partners of points at the edge lie there."""


class AlignedPointMatcher(PointMatcher):
    """Finds points of one volume in another by embeddings of the aligned volume.

    Args:
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        extractor: of the embeddings.
        seed: of the robust fits, and of the points that make the consensus.
    """

    def __init__(
        self, fixed: EmbeddedVolume, moving: EmbeddedVolume, extractor: FeatureExtractor, seed: int = 0
    ) -> None:
        super().__init__(fixed, moving, seed)
        self.extractor = extractor

    def prepare(self) -> None:
        """Do now what the first points would otherwise have to wait for."""
        _ = self.fixed.index, self.consensus

    @property
    def indices(self) -> list[FeatureIndex]:
        """All that is searched, which takes most of the memory."""
        return [*super().indices, self.aligned]

    @cached_property
    def aligned(self) -> FeatureIndex:
        """The vectors of the moving volume as it lies under the map of the whole body."""
        moving = self.moving.image
        image = aligned_volume(moving, self.whole_body, covering_grid(moving, self.whole_body, self.fixed.image))
        return EmbeddedVolume(image, self._as_precise_as_fixed(self.extractor.extract(image))).index

    def _as_precise_as_fixed(self, features: Features) -> Features:
        """A worker keeps half precision where its extractor computes in full: only equals can be compared."""
        precision, coarse = self.fixed.features.fine.data.dtype, features.coarse
        return Features(features.fine.to(dtype=precision), None if coarse is None else coarse.to(dtype=precision))

    @cached_property
    def consensus(self) -> Consensus:
        """Of matches of points all over the fixed body."""
        places = points_in_body(self.fixed, CONSENSUS_POINTS, self.seed)
        with torch.no_grad():
            return Consensus(match_structurally(places, self.fixed.index, self.aligned))

    @property
    def least_support(self) -> float:
        """Half of what is usual between these two: neighbors agree less between people than within one.

        Between people, of points with 0.6 times the usual support 59 % fall into the same organ, of others 81 %.
        """
        usual = float(np.median(self.consensus.matches.support)) if len(self.consensus.matches) else 0.0
        return float(np.clip(_DOUBTFUL_SHARE * usual, _LOWEST_LEAST_SUPPORT, LEAST_SUPPORT))

    def _matched(self, points: FloatArray) -> MatchedPoints:
        found = self.consensus.improve(match_structurally(points, self.fixed.index, self.aligned))
        matched = self.whole_body.transform_points(found.matched)
        nothing = ("",) * len(points)
        return MatchedPoints(points, matched, found.score, found.support, found.cycle_error, nothing)


def covering_grid(moving: Image, to_moving: AffineTransform, fixed: Image) -> Grid:
    """The part of the fixed world, around the fixed volume, that a moving volume shows under a linear map.

    All of the moving volume if that lies elsewhere. Voxels are cubes as large as the finest spacing of the moving
    volume, but not finer than the fixed volume's.
    """
    corners = to_moving.inverse().transform_points(moving.grid.corners())
    lower, upper = corners.min(axis=0), corners.max(axis=0)
    around = fixed.grid.corners()
    first_shown = np.maximum(lower, around.min(axis=0) - MARGIN_MM)
    last_shown = np.minimum(upper, around.max(axis=0) + MARGIN_MM)
    if (first_shown < last_shown).all():
        lower, upper = first_shown, last_shown
    spacing = max(min(moving.grid.spacing), min(fixed.grid.spacing))
    x, y, z = np.maximum(np.round((upper - lower) / spacing), 1).astype(int).tolist()
    left, front, bottom = ((lower + upper - (np.array([x, y, z]) - 1) * spacing) / 2).tolist()
    return Grid((x, y, z), (spacing,) * 3, (left, front, bottom))


def points_in_body(volume: EmbeddedVolume, count: int, seed: int) -> FloatArray:
    """Random positions (n, 3) in the body of a volume, LPS mm, at most so many."""
    voxels = np.argwhere(volume.body.data.cpu().numpy() > 0.5)[:, ::-1]
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(voxels), min(count, len(voxels)), replace=False)
    return np.asarray(volume.body.grid.to_world(voxels[chosen] + generator.uniform(-0.5, 0.5, (len(chosen), 3))))
