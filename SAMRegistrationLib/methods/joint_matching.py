"""Points matched jointly: the transformer proposes a map of the whole body, the embedding refines within it.

Embeddings tell places apart to a voxel but bear moderate turns only; the transformer bears larger ones but is
coarse. Of the map that its answers agree on and the map that matched embeddings agree on, the one under which the
volumes look more alike is taken. Where that turns or resizes the body much, the moving volume is brought upright
by it, embedded and matched once more, and the map that this gives is kept if the volumes look yet more alike.
Under the map, points are then matched as in `aligned_matching`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..alignment.intensity_alignment import IntensityAligner
from ..alignment.refinement import Model
from ..alignment.robust_fit import Fit
from ..alignment.volumes import PreparedImage
from ..features.base import FeatureExtractor
from ..models.quiz import QuizModel, load_quiz
from ..transforms import AffineTransform
from .aligned_matching import AlignedPointMatcher, covering_grid
from .point_matching import EmbeddedVolume, PointMatcher
from .quiz import QuizPointMatcher
from .sam_affine import LARGE_TURN_DEGREES, aligned_volume, turn_degrees

_LARGE_RESIZING = 1.15
_SURE_SHARE = 0.6
"""Of the matches all over the body; where so many agree on a map, it is about right."""

_AGREEING_MM = 40.0
"""Mean distance of the fixed volume's corners under two maps that say the same."""


class JointPointMatcher(AlignedPointMatcher):
    """Finds points by both.

    Args:
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        model: the network.
        extractor: of the embeddings.
        seed: of the robust fits, and of the points that make the consensus.
    """

    def __init__(
        self,
        fixed: EmbeddedVolume,
        moving: EmbeddedVolume,
        model: QuizModel,
        extractor: FeatureExtractor,
        seed: int = 0,
    ) -> None:
        super().__init__(fixed, moving, extractor, seed)
        self.by_embedding = PointMatcher(fixed, moving, seed)
        self.by_network = QuizPointMatcher(fixed, moving, model, seed)

    @cached_property
    def whole_body(self) -> AffineTransform:
        """The better of both proposals, refined where it moves the body much."""
        proposals = [self.by_network.whole_body, self.by_embedding.whole_body]
        proposed = self._best(proposals)
        if not _moves_much(proposed) and self._agree(proposals):
            return proposed
        if not (proposed is self.by_embedding.whole_body and self._embedding_is_sure):
            # Of two maps that contradict each other the wrong one can be the more alike until both are improved.
            proposed = self._best([proposed, self._judge.improve(proposals, Model.AFFINE).transform])
        moving = self.moving.image
        upright = aligned_volume(moving, proposed, covering_grid(moving, proposed, self.fixed.image))
        volume = EmbeddedVolume(upright, self.extractor.extract(upright))
        refined = PointMatcher(self.fixed, volume, self.seed).body_fit
        return proposed if refined is None else self._best([proposed.compose(refined.transform), proposed])

    @cached_property
    def body_fit(self) -> Fit | None:
        """What the embeddings agree on."""
        return self.by_embedding.body_fit

    @cached_property
    def _judge(self) -> IntensityAligner:
        prepared = PreparedImage.of(self.fixed.image, None), PreparedImage.of(self.moving.image, None)
        return IntensityAligner(*prepared, self.seed)

    @property
    def _embedding_is_sure(self) -> bool:
        fit = self.by_embedding.body_fit
        return fit is not None and float(fit.inliers.mean()) >= _SURE_SHARE

    def _agree(self, maps: list[AffineTransform]) -> bool:
        corners = self.fixed.image.grid.corners()
        apart = maps[0].transform_points(corners) - maps[1].transform_points(corners)
        return float(np.linalg.norm(apart, axis=1).mean()) < _AGREEING_MM

    def _best(self, maps: list[AffineTransform]) -> AffineTransform:
        """The map under which the volumes look most alike, by their intensities."""
        return maps[int(np.argmax([self._judge.judged(each).score for each in maps]))]


def _moves_much(transform: AffineTransform) -> bool:
    """Whether a map turns or resizes the body so much that embeddings suffer."""
    resizing = abs(float(np.log(np.linalg.det(transform.matrix[:3, :3])))) / 3
    return turn_degrees(transform) > LARGE_TURN_DEGREES or resizing > np.log(_LARGE_RESIZING)


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
        return AlignedPointMatcher(fixed, moving, extractor)
    network = model or load_quiz()
    if method == "quiz":
        return QuizPointMatcher(fixed, moving, network)
    return JointPointMatcher(fixed, moving, network, extractor)
