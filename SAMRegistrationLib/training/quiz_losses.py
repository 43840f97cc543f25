"""The losses of the query point network: equations 1 to 5 of the paper, and two of our own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..networks.quiz import Answers, sample_at
from .quiz_config import QuizLossConfig
from .quiz_pairs import QuizPair

NCC_WINDOW = 9
_EPSILON = 1e-4
_LEAST_PROBABILITY = 1e-5
_SMALLEST_OFFSET = 1e-4
"""Below which an offset counts as none: the root has no slope at zero."""


def quiz_loss(
    answers: Answers, pair: QuizPair, config: QuizLossConfig, with_translation: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss, and its parts without their weights."""
    residual = (pair.queries + answers.displacement - pair.targets).norm(dim=-1)
    parts = {"pair": _mean_where(residual.square(), pair.shown)}
    total = parts["pair"]
    if config.distance > 0:
        parts["distance"] = _mean_where(residual, pair.shown)
        total = total + config.distance * parts["distance"]
    if config.offset > 0:
        parts["offset"] = offset_loss(pair.queries + answers.displacement - pair.targets, pair.shown)
        total = total + config.offset * parts["offset"]
    if with_translation and config.translation > 0:
        parts["translation"] = translation_loss(pair.reference, pair.search, answers.displacement)
        total = total + config.translation * parts["translation"]
    if config.confidence > 0:
        parts["confidence"] = confidence_loss(residual, answers.log_variance, pair.shown, config.hidden_error)
        total = total + config.confidence * parts["confidence"]
    if config.pointing > 0 and answers.pointing is not None:
        parts["pointing"] = pointing_loss(answers.pointing, pair.targets, pair.shown)
        total = total + config.pointing * parts["pointing"]
    return total, parts


def translation_loss(reference: Tensor, search: Tensor, displacement: Tensor) -> Tensor:
    """Equations 3 to 5: how unlike the reference the searched volume is after the mean displacement.

    Args:
        reference, search: (b, 1, z, y, x).
        displacement: (b, n, 3) of the queries, in halves of the volumes' sides; their mean is applied.
    """
    shift = displacement.mean(dim=1)
    identity = torch.eye(3, device=shift.device).expand(len(shift), 3, 3)
    matrix = torch.cat([identity, shift[:, :, None]], dim=2)
    positions = functional.affine_grid(matrix, list(search.shape), align_corners=False)
    moved = functional.grid_sample(search, positions, align_corners=False)
    return -normalized_correlation(reference, moved)


def offset_loss(error: Tensor, shown: Tensor) -> Tensor:
    """How far off the mean displacement of the shown queries is, of errors (b, n, 3) and shown (b, n)."""
    kept = shown[..., None]
    each = (error * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
    return (each.square().sum(dim=-1) + _SMALLEST_OFFSET**2).sqrt().mean()


def normalized_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Equation 4, as the mean over all windows instead of their sum, so that it does not grow with the volume."""
    means = [_windowed(v) for v in (first, second, first.square(), second.square(), first * second)]
    covariance = means[4] - means[0] * means[1]
    first_variance = (means[2] - means[0].square()).clamp(min=0) + _EPSILON
    second_variance = (means[3] - means[1].square()).clamp(min=0) + _EPSILON
    return (covariance / (first_variance * second_variance).sqrt()).mean()


def confidence_loss(residual: Tensor, log_variance: Tensor, shown: Tensor, hidden_error: float) -> Tensor:
    """Negative logarithm of the likelihood of the errors (b, n) under three-dimensional Gaussians."""
    error = torch.where(shown, residual.detach(), hidden_error)
    return (1.5 * log_variance + error.square() / (2 * log_variance.exp())).mean()


def pointing_loss(pointing: Tensor, targets: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of where queries point (b, n, z, y, x), against the cells around their targets."""
    pairs, queries = pointing.shape[:2]
    each = pointing.flatten(0, 1)[:, None]
    probability = sample_at(each, targets.reshape(pairs * queries, 1, 3)).view(pairs, queries)
    return _mean_where(-probability.clamp(min=_LEAST_PROBABILITY).log(), shown)


def _windowed(values: Tensor) -> Tensor:
    # Axis by axis, which is a tenth of the work.
    for axis in range(3):
        values = functional.avg_pool3d(values, [NCC_WINDOW if axis == each else 1 for each in range(3)], 1)
    return values


def _mean_where(values: Tensor, kept: Tensor) -> Tensor:
    return (values * kept).sum() / kept.sum().clamp(min=1)
