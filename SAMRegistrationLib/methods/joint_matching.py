"""Points matched jointly: the transformer proposes a map of the whole body, the embedding refines within it.

Embeddings tell places apart to a voxel but bear moderate turns only; the transformer bears large ones but is
coarse. Of the map that its answers agree on and the map that matched embeddings agree on, the one under which the
volumes look more alike is taken. Where that turns the body far, the moving volume is brought upright by it and
embedded once more, and points are matched in that, near where the map puts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..alignment import judge
from ..features.base import FeatureExtractor
from ..grid import FloatArray
from ..matching import match_structurally
from ..models.quiz import QuizModel, load_quiz
from ..transforms import AffineTransform
from .point_matching import EmbeddedVolume, MatchedPoints, PointMatcher
from .quiz import QuizPointMatcher
from .sam_affine import LARGE_TURN_DEGREES, aligned_volume, turn_degrees


@dataclass(frozen=True, eq=False)
class _Upright:
    """The moving volume brought near the fixed one: points of the fixed world lie near themselves in it.

    Args:
        matcher: of points in it.
        to_moving: from its world to the moving volume's.
    """

    matcher: PointMatcher
    to_moving: AffineTransform


class JointPointMatcher(PointMatcher):
    """Finds points by both.

    Args:
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        model: the network.
        extractor: of the embeddings.
        seed: of the robust fits.
    """

    def __init__(
        self,
        fixed: EmbeddedVolume,
        moving: EmbeddedVolume,
        model: QuizModel,
        extractor: FeatureExtractor,
        seed: int = 0,
    ) -> None:
        super().__init__(fixed, moving, seed)
        self.extractor = extractor
        self.by_embedding = PointMatcher(fixed, moving, seed)
        self.by_network = QuizPointMatcher(fixed, moving, model, seed)

    @cached_property
    def proposed(self) -> AffineTransform:
        """The better of the two maps of the whole body."""
        maps = [self.by_network.whole_body, self.by_embedding.whole_body]
        scores = [judge(self.fixed.image, self.moving.image, each) for each in maps]
        return maps[int(np.argmax(scores))]

    @cached_property
    def whole_body(self) -> AffineTransform:
        """The proposed map, refined by embeddings where the volume was brought upright."""
        upright = self._upright
        return upright.to_moving.compose(upright.matcher.whole_body)

    @cached_property
    def _upright(self) -> _Upright:
        first = self._brought_upright(self.proposed)
        if first.matcher is self.by_embedding:
            return first
        # What the embedding of the upright volume finds is better than the proposal: once more from there.
        refined = first.to_moving.compose(first.matcher.whole_body)
        scores = [judge(self.fixed.image, self.moving.image, each) for each in (first.to_moving, refined)]
        return self._brought_upright(refined) if scores[1] > scores[0] else first

    def _brought_upright(self, to_moving: AffineTransform) -> _Upright:
        if turn_degrees(to_moving) < LARGE_TURN_DEGREES:
            return _Upright(self.by_embedding, AffineTransform())
        image = aligned_volume(self.moving.image, to_moving, self.fixed.image.grid)
        volume = EmbeddedVolume(image, self.extractor.extract(image))
        return _Upright(PointMatcher(self.fixed, volume, self.seed), to_moving)

    def _matched(self, points: FloatArray) -> MatchedPoints:
        upright = self._upright
        found = match_structurally(points, self.fixed.index, upright.matcher.moving.index)
        matched = upright.to_moving.transform_points(found.matched)
        nothing = ("",) * len(points)
        return MatchedPoints(points, matched, found.score, found.support, found.cycle_error, nothing)


def point_matcher(
    method: str,
    fixed: EmbeddedVolume,
    moving: EmbeddedVolume,
    extractor: FeatureExtractor,
    model: QuizModel | None = None,
) -> PointMatcher:
    """The matcher of a method, "sam", "quiz" or "joint".

    Args:
        method: one of `METHODS`.
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        extractor: of the embeddings.
        model: the network of "quiz" and "joint"; the default model if it is not given.

    Raises:
        UsageError: if a network is needed and there is none.
    """
    if method == "sam":
        return PointMatcher(fixed, moving)
    network = model or load_quiz()
    if method == "quiz":
        return QuizPointMatcher(fixed, moving, network)
    return JointPointMatcher(fixed, moving, network, extractor)
