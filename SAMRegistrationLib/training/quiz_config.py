"""Every constant of a training run of the query point network: the published recipe, and a small one for CPUs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .quiz_views import QuizViewConfig
from .settings import LoopSettings, from_plain


@dataclass(frozen=True)
class QuizPairConfig:
    """How pairs of views are drawn and changed.

    Args:
        image_size: voxels along a side of the cubes.
        embedding_size: cells of the embedding along a side; of no account to a network without embedding.
        queries: points asked per pair.
        change_probability: of each published change: translation, scaling, axis permutation and flips.
        translation: largest shift of a cube, as a share of its side.
        scaling: largest factor by which the cubes are too large.
        turns: whether axes are permuted and flipped: of both volumes alike, because of one alone it would be a
            matter of guessing which hand is the right one. Not with embeddings, which know how people lie.
        between_subjects: how often a pair is of two subjects, with the centers of their structures as targets.
        least_structures: that two subjects must have in common for that.
    """

    image_size: int = 128
    embedding_size: int = 16
    queries: int = 40
    change_probability: float = 0.2
    translation: float = 0.2
    scaling: float = 1.5
    turns: bool = True
    between_subjects: float = 0.0
    least_structures: int = 4


@dataclass(frozen=True)
class QuizLossConfig:
    """Weights of the losses.

    Args:
        distance: of the mean distance itself, whose slope does not vanish, as that of the published square does,
            where answers are nearly right. Ours.
        offset: of the length of a pair's mean error, by which a translation is off that the answers make. Ours.
        translation: alpha of equation 1, of the likeness of the volumes after the mean displacement.
        translation_from: share of the run after which that joins in; the paper trains the quizzer alone first.
        confidence: of the likelihood of the errors under the predicted variances, from which no gradient reaches
            the displacement. Ours.
        hidden_error: the error, in halves of the side, that counts for points the searched volume does not show.
        pointing: of the cross-entropy of where a query points. Ours.
    """

    distance: float = 0.0
    offset: float = 0.0
    translation: float = 0.01
    translation_from: float = 0.5
    confidence: float = 0.0
    hidden_error: float = 0.5
    pointing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class QuizTrainingConfig(LoopSettings):
    """One training run.

    Args:
        embedding: model whose frozen embedding goes in beside the image, or None as published.
        batch: pairs per iteration and process.
    """

    architecture: str = "quiz"
    embedding: str | None = None
    batch: int = 2
    iterations: int = 2000
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 0
    decay: float = 0.0
    average_decay: float = 0.995
    checkpoint_minutes: float = 3.0
    views: QuizViewConfig = field(default_factory=QuizViewConfig)
    pairs: QuizPairConfig = field(default_factory=QuizPairConfig)
    loss: QuizLossConfig = field(default_factory=QuizLossConfig)

    def changed(self, values: dict[str, Any]) -> QuizTrainingConfig:
        """With some settings replaced, as JSON gives them.

        Raises:
            TypeError: if a setting is unknown.
        """
        parts = {"views": self.views, "pairs": self.pairs, "loss": self.loss}
        nested: dict[str, Any] = {
            key: from_plain(type(part), {**vars(part), **values.get(key, {})}) for key, part in parts.items()
        }
        plain = {key: value for key, value in values.items() if key not in parts}
        return replace(self, **plain, **nested)


LITE_NETWORK = {
    "channels": 128,
    "widths": [24, 48, 96, 96],
    "layers": 3,
    "heads": 4,
    "embedding_channels": 128,
    "content_queries": True,
    "pointing": True,
}

GPU_NETWORK = {**LITE_NETWORK, "channels": 192, "widths": [32, 64, 96, 128], "layers": 4, "heads": 6}

RECIPES = {
    "published": QuizTrainingConfig(),
    "lite": QuizTrainingConfig(
        network=LITE_NETWORK,
        embedding="sam",
        iterations=450,
        learning_rate=1e-3,
        weight_decay=1e-3,
        warmup=30,
        decay=0.5,
        pairs=QuizPairConfig(image_size=48, queries=256, turns=False, between_subjects=0.3),
        loss=QuizLossConfig(translation_from=0.8, confidence=0.01, pointing=0.02),
    ),
    "gpu": QuizTrainingConfig(
        network=GPU_NETWORK,
        embedding="sam",
        batch=12,
        iterations=1500,
        learning_rate=1e-3,
        weight_decay=1e-3,
        warmup=100,
        decay=0.8,
        checkpoint_minutes=0.7,
        pairs=QuizPairConfig(
            image_size=96, embedding_size=24, queries=192, translation=0.1, turns=False, between_subjects=0.2
        ),
        loss=QuizLossConfig(distance=0.5, offset=0.5, translation_from=0.7, confidence=0.01, pointing=0.02),
    ),
}
"""The paper's; one for the hour of a processor core, with smaller cubes and network and our additions; and one for
some minutes of a GPU that three processes share."""
