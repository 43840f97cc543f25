"""All losses of one batch, weighted and summed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .batches import Batch
from .cache import CachedVolume
from .config import LossConfig
from .correspondence_loss import contrast_correspondences
from .embedding_samples import EmbeddedView, draw_places
from .losses import contrast_atlas, contrast_organs, contrast_views, fit_affine
from .negative_bank import NegativeBank
from .pseudo_pairs import PseudoPair

FEWEST_LANDMARK_STRUCTURES = 3
CROSSED_VIEWS = ((0, 2), (3, 1))
"""Query and target view among the four views of a pair of subjects: every view once."""

FACING_VIEWS = ((0, 2), (1, 3))
"""Views of the first and of the second subject that pseudo-pairs connect, in both directions at once."""


def embed(
    network: nn.Module, batch: Batch, config: LossConfig, generator: torch.Generator, *, mixed_precision: bool
) -> list[EmbeddedView]:
    """Both views of every volume, in the order of `batch.images`, with the places that the losses compare."""
    views = [view for pair in batch.views for view in pair]
    # Drawn first, so that the network need not have ended when the draw waits for the device.
    places = draw_places(views, config, generator)
    images = batch.images.contiguous(memory_format=torch.channels_last_3d)
    # Networks that can leave their vectors unscaled save the scaling of millions of vectors no loss looks at.
    embed_images = getattr(network, "unscaled", network)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed_precision):
        fine, coarse = embed_images(images)
    return [
        EmbeddedView(view, fine_map, coarse_map, config, drawn)
        for view, fine_map, coarse_map, drawn in zip(views, fine.unbind(), coarse.unbind(), places, strict=True)
    ]


def total_loss(
    embedded: list[EmbeddedView], batch: Batch, config: LossConfig, bank: NegativeBank
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and the mean of every part without gradient (absent where a batch offers none).

    The sum is differentiable even if no part applies. The batch's coarse vectors enter `bank`.
    """
    weights = {
        "fine": 1.0,
        "coarse": 1.0,
        "organs": config.organ_weight,
        "atlas": config.atlas_weight,
        "pairs_fine": config.correspondence_weight,
        "pairs_coarse": config.correspondence_weight,
    }
    parts: dict[str, list[Tensor]] = {name: [] for name in weights}
    for index, volume in enumerate(batch.volumes):
        result = contrast_views(
            embedded[2 * index], embedded[2 * index + 1], bank.strangers(volume.region), config
        )
        if result is not None:
            parts["fine"].append(result[0])
            parts["coarse"].append(result[1])
    for index in range(0, len(batch.volumes), 2):
        views, volumes = embedded[2 * index : 2 * index + 4], batch.volumes[index : index + 2]
        bank.add(volumes[0].region, views)
        if volumes[0].subject != volumes[1].subject:
            _contrast_subjects(parts, views, volumes, config)
        pair = batch.pseudo_pairs.get(index)
        if pair is not None and config.correspondence_weight > 0:
            _contrast_pseudo_pair(parts, views, pair, config)
    means = {name: torch.stack(values).mean() for name, values in parts.items() if values}
    total = embedded[0].fine_rows[:1].float().sum() * 0.0
    for name, value in means.items():
        total = total + weights[name] * value
    return total, {name: value.detach() for name, value in means.items()}


def _contrast_subjects(
    parts: dict[str, list[Tensor]], views: list[EmbeddedView], volumes: list[CachedVolume], config: LossConfig
) -> None:
    """Contrast the first and the second subject's views with each other, both ways."""
    for first, second in CROSSED_VIEWS:
        if config.organ_weight > 0:
            _append(parts["organs"], contrast_organs(views[first], views[second], config))
        if config.atlas_weight > 0:
            pair = volumes[first // 2], volumes[second // 2]
            _append(parts["atlas"], _atlas_loss(views[first], views[second], *pair, config))


def _contrast_pseudo_pair(
    parts: dict[str, list[Tensor]], views: list[EmbeddedView], pair: PseudoPair, config: LossConfig
) -> None:
    for first, second in FACING_VIEWS:
        result = contrast_correspondences(views[first], views[second], pair, config)
        if result is not None:
            parts["pairs_fine"].append(result[0])
            parts["pairs_coarse"].append(result[1])


def _atlas_loss(
    query: EmbeddedView, target: EmbeddedView, fixed: CachedVolume, moving: CachedVolume, config: LossConfig
) -> Tensor | None:
    shared = sorted(set(fixed.landmarks) & set(moving.landmarks))
    if len(shared) < FEWEST_LANDMARK_STRUCTURES:
        return None
    device = query.fine_rows.device
    source, destination = (_landmarks(volume, shared) for volume in (fixed, moving))
    return contrast_atlas(query, target, fit_affine(source, destination).to(device), source.to(device), config)


def _append(values: list[Tensor], value: Tensor | None) -> None:
    if value is not None:
        values.append(value)


def _landmarks(volume: CachedVolume, structures: list[str]) -> Tensor:
    return torch.tensor([point for name in structures for point in volume.landmarks[name]])
