"""All losses of one batch, weighted and summed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .batches import Batch
from .cache import CachedVolume
from .config import LossConfig
from .embedding_samples import EmbeddedView, Samples
from .losses import contrast_atlas, contrast_organs, contrast_views, fit_affine

FEWEST_LANDMARK_STRUCTURES = 3


def embed(
    network: nn.Module, batch: Batch, config: LossConfig, generator: torch.Generator, *, mixed_precision: bool
) -> list[EmbeddedView]:
    """Both views of every volume, in the order of `batch.images`."""
    images = batch.images.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed_precision):
        fine, coarse = network.unscaled(images)
    views = [view for pair in batch.views for view in pair]
    maps = zip(views, fine.unbind(), coarse.unbind(), strict=True)
    return [EmbeddedView(view, *pair, config, generator) for view, *pair in maps]


def total_loss(embedded: list[EmbeddedView], batch: Batch, config: LossConfig) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum and the mean of every part (absent where a batch offers none).

    The sum is differentiable even if no part applies, so that every process of a distributed run takes part.
    """
    parts: dict[str, list[Tensor]] = {"fine": [], "coarse": [], "organs": [], "atlas": []}
    for index in range(len(batch.volumes)):
        views = embedded[2 * index], embedded[2 * index + 1]
        result = contrast_views(*views, _others(embedded, batch, index, config), config)
        if result is not None:
            parts["fine"].append(result[0])
            parts["coarse"].append(result[1])
    for index in range(0, len(batch.volumes), 2):
        _add_subject_pair(parts, embedded[2 * index : 2 * index + 4], batch.volumes[index : index + 2], config)
    weights = {"fine": 1.0, "coarse": 1.0, "organs": config.organ_weight, "atlas": config.atlas_weight}
    means = {name: torch.stack(values).mean() for name, values in parts.items() if values}
    total = embedded[0].fine_rows[:1].float().sum() * 0.0
    for name, value in means.items():
        total = total + weights[name] * value
    return total, {name: float(value.detach()) for name, value in means.items()}


def _others(embedded: list[EmbeddedView], batch: Batch, index: int, config: LossConfig) -> Samples | None:
    """Places in volumes of other body regions (the same region holds the same anatomy, so no negatives)."""
    region = batch.volumes[index].region
    strangers = [number for number, volume in enumerate(batch.volumes) if volume.region != region]
    if not strangers:
        return None
    share = config.other_negatives // (2 * len(strangers))
    samples = [embedded[2 * number + view].pool.take(slice(share)) for number in strangers for view in range(2)]
    return Samples.join(samples)


def _add_subject_pair(
    parts: dict[str, list[Tensor]],
    views: list[EmbeddedView],
    volumes: list[CachedVolume],
    config: LossConfig,
) -> None:
    """Contrast the first and the second subject's views with each other, both ways."""
    if volumes[0].subject == volumes[1].subject:
        return
    for first, second in ((0, 2), (2, 0), (1, 3), (3, 1)):
        organs = contrast_organs(views[first], views[second], config)
        if organs is not None:
            parts["organs"].append(organs)
        fixed, moving = volumes[first // 2], volumes[second // 2]
        shared = sorted(set(fixed.landmarks) & set(moving.landmarks))
        if len(shared) < FEWEST_LANDMARK_STRUCTURES:
            continue
        device = views[first].fine_rows.device
        source, target = (_landmarks(volume, shared).to(device) for volume in (fixed, moving))
        transform = fit_affine(source, target)
        atlas = contrast_atlas(views[first], views[second], transform, source, config)
        if atlas is not None:
            parts["atlas"].append(atlas)


def _landmarks(volume: CachedVolume, structures: list[str]) -> Tensor:
    return torch.tensor([point for name in structures for point in volume.landmarks[name]])
