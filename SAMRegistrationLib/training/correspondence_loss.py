"""Contrast between two subjects at places that a pseudo-pair connects.

As InfoNCE within a volume, but the partner's place is known only to some mm. The positive is therefore a Gaussian
mixture of the similarities around the expected place: whatever there looks most like the query is pulled closest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .config import LossConfig
from .embedding_samples import EmbeddedView, Samples
from .losses import FEWEST_QUERIES, contrast_with_far_places
from .pseudo_pairs import PseudoPair
from .views import locate

NEIGHBORS = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
"""Where the similarity is read, in standard deviations from the expected place; the place itself comes first."""


def contrast_correspondences(
    first: EmbeddedView, second: EmbeddedView, pair: PseudoPair, config: LossConfig
) -> tuple[Tensor, Tensor] | None:
    """Fine and coarse InfoNCE between views of two subjects, looking from each into the other.

    Args:
        first: a view of the pair's fixed volume.
        second: a view of its moving volume.
        pair: on the views' device.
        config: of the loss.

    Returns:
        Both losses, or None where the views have (almost) no places that the pair connects.
    """
    places = first.pool.take(slice(4 * config.queries))
    if len(places) == 0 or len(second.pool) == 0:
        return None
    mapped, agrees = pair.mapped(places.positions)
    voxels, found = locate(second.view, mapped)
    picks = torch.nonzero(agrees & found & second.is_visible(voxels))[: config.queries, 0]
    if len(picks) < FEWEST_QUERIES:
        return None
    places = places.take(picks)
    own_voxels, _ = locate(first.view, places.positions)
    partners = replace(places, positions=mapped[picks])
    around_first = _neighborhood(first, own_voxels, places, config.correspondence_sigma)
    around_second = _neighborhood(second, voxels[picks], partners, config.correspondence_sigma)
    losses = [
        _directed(around_first, around_second, second, config),
        _directed(around_second, around_first, first, config),
    ]
    fine, coarse = (torch.stack(parts).mean() for parts in zip(*losses, strict=True))
    return fine, coarse


@dataclass(frozen=True)
class _Neighborhood:
    """Vectors (k, n, C) at the `NEIGHBORS` of n places, whose own samples are in `middle`."""

    middle: Samples
    fine: Tensor
    coarse: Tensor


def _neighborhood(view: EmbeddedView, voxels: Tensor, places: Samples, sigma: float) -> _Neighborhood:
    """Around fine voxel coordinates (n, 3) of `view`, which show `places`; `sigma` in mm."""
    shifts = voxels.new_tensor(NEIGHBORS) * sigma @ torch.linalg.inv(view.view.matrix).T
    around = (voxels + shifts[:, None]).reshape(-1, 3)
    shape = len(NEIGHBORS), len(voxels), -1
    fine, coarse = view.fine_at(around).reshape(shape), view.coarse_at(around).reshape(shape)
    return _Neighborhood(replace(places, fine=fine[0], coarse=coarse[0]), fine, coarse)


def _directed(
    query: _Neighborhood, partner: _Neighborhood, target: EmbeddedView, config: LossConfig
) -> tuple[Tensor, Tensor]:
    queries = replace(query.middle, positions=partner.middle.positions)
    positives = (
        _mixture(queries.fine, partner.fine, config.temperature),
        _mixture(queries.coarse, partner.coarse, config.temperature),
    )
    radius = config.correspondence_radius
    radii = radius, max(radius, config.coarse_radius)
    return contrast_with_far_places(queries, positives, target, target.pool, None, radii, config)


def _mixture(queries: Tensor, partners: Tensor, temperature: float) -> Tensor:
    """Similarity (n, 1) that, divided by the temperature, is the log of the Gaussian mean of exponentials."""
    squared = torch.tensor(NEIGHBORS, dtype=queries.dtype).square().sum(dim=1)
    weights = torch.log_softmax(-squared / 2, dim=0).to(queries.device)
    similarity = (queries * partners).sum(dim=2) / temperature
    return temperature * torch.logsumexp(similarity + weights[:, None], dim=0)[:, None]
