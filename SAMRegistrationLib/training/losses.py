"""Contrast within a volume and between subjects.

`contrast_views` is the InfoNCE of SAM (Yan et al. 2022, arXiv 2012.02383, section III) with hard negatives.
`contrast_organs` and `contrast_atlas` bring the signal between subjects, in the spirit of the supervised contrast
of UAE-S (arXiv 2311.15111), but without pulling a whole structure onto one vector, which would take the position
along the spinal cord away.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .config import LossConfig
from .embedding_samples import EmbeddedView, Samples
from .views import locate

FEWEST_QUERIES = 8
LOWEST = -1e4


def contrast_views(
    first: EmbeddedView,
    second: EmbeddedView,
    others: Tensor | None,
    config: LossConfig,
) -> tuple[Tensor, Tensor] | None:
    """Fine and coarse InfoNCE between two views of one volume, queries in both of them.

    The positive is the interpolated vector at the exact corresponding place. Negatives are places of both views
    farther away than a radius, some of them looked for in the whole other view; those most similar in fine plus
    coarse are kept. The coarse loss also gets places of other volumes. Returns None where the views have (almost)
    nothing in common.
    """
    pools = first.pool, second.pool
    if min(len(pool) for pool in pools) == 0:
        return None
    both = Samples.join(list(pools))
    losses = []
    for pool, target in ((pools[0], second), (pools[1], first)):
        queries = pool.take(slice(4 * config.queries))
        voxels, found = locate(target.view, queries.positions)
        picks = torch.nonzero(found & target.is_visible(voxels))[: config.queries, 0]
        if len(picks) >= FEWEST_QUERIES:
            losses.append(_directed(queries.take(picks), target, voxels[picks], both, others, config))
    if not losses:
        return None
    fine, coarse = (torch.stack(parts).mean() for parts in zip(*losses, strict=True))
    return fine, coarse


def _directed(
    queries: Samples,
    target: EmbeddedView,
    voxels: Tensor,
    pool: Samples,
    others: Tensor | None,
    config: LossConfig,
) -> tuple[Tensor, Tensor]:
    positives = [
        (own * found).sum(dim=1, keepdim=True)
        for own, found in ((queries.fine, target.fine_at(voxels)), (queries.coarse, target.coarse_at(voxels)))
    ]
    radii = config.fine_radius, config.coarse_radius
    return contrast_with_far_places(queries, (positives[0], positives[1]), target, pool, others, radii, config)


def contrast_with_far_places(
    queries: Samples,
    positives: tuple[Tensor, Tensor],
    target: EmbeddedView,
    pool: Samples,
    others: Tensor | None,
    radii: tuple[float, float],
    config: LossConfig,
) -> tuple[Tensor, Tensor]:
    """Fine and coarse InfoNCE with given positives.

    Args:
        queries: their `positions` say where they are expected in the frame of `target` and `pool`.
        positives: (n, 1) similarity of each query to its partner, fine and coarse.
        target: the view that is also searched as a whole for hard negatives.
        pool: places to take negatives of.
        others: (k, C) coarse vectors that are wrong for all queries.
        radii: mm around the expected place without fine and without coarse negatives.
    """
    mined = target.at_nodes(_hardest_far_nodes(queries, target, radii[0], config.mined_negatives))
    pool = Samples.join([pool, mined])
    distance = torch.cdist(queries.positions, pool.positions)
    fine = queries.fine @ pool.fine.T
    coarse = queries.coarse @ pool.coarse.T
    joined = (fine + coarse).detach()
    fine_negatives = _negatives(fine, joined, distance <= radii[0], config)
    coarse_negatives = _negatives(coarse, coarse.detach(), distance <= radii[1], config)
    if others is not None:
        coarse_negatives = torch.cat([coarse_negatives, queries.coarse @ others.T], dim=1)
    temperature = config.temperature
    return (
        _first_of(torch.cat([positives[0], fine_negatives], dim=1) / temperature),
        _first_of(torch.cat([positives[1], coarse_negatives], dim=1) / temperature),
    )


def _hardest_far_nodes(queries: Samples, target: EmbeddedView, radius: float, count: int) -> Tensor:
    """Nodes of the whole target view that look most like some query although they are farther than `radius`."""
    with torch.no_grad():
        positions = target.view.mesh.reshape(3, -1)[:, target.nodes].T
        too_near = torch.cdist(queries.positions, positions) <= radius
        return _most_similar_nodes(queries, target, too_near, count)


def _negatives(similarity: Tensor, ranking: Tensor, too_near: Tensor, config: LossConfig) -> Tensor:
    """The hardest places and as many random ones as the configuration says.

    Hard ones alone drive an untrained network to one vector for everything: they are then always at the top.
    """
    masked = similarity.masked_fill(too_near, LOWEST)
    hardest = ranking.masked_fill(too_near, LOWEST).topk(min(config.hard_negatives, ranking.shape[1]), dim=1)
    stride = max(1, ranking.shape[1] // config.random_negatives)
    return torch.cat([masked.gather(1, hardest.indices), masked[:, ::stride]], dim=1)


def _first_of(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def contrast_organs(query_view: EmbeddedView, target_view: EmbeddedView, config: LossConfig) -> Tensor | None:
    """How much of a point's similarity to another subject falls outside the same structure.

    For query i: -log(sum over the same structure of exp(s_ij / t) / sum over everything), s the mean of the fine
    and the coarse similarity as matching uses it. Averaged over the structures seen in both views; None if none.
    """
    shared = sorted(query_view.organs.keys() & target_view.organs.keys())
    if not shared:
        return None
    queries = Samples.join([query_view.organs[code].take(slice(config.organ_queries)) for code in shared])
    wrong = _hardest_wrong_nodes(queries, target_view, config.organ_negatives)
    targets = Samples.join(
        [target_view.organs[code] for code in shared] + [target_view.pool, target_view.at_nodes(wrong)]
    )
    logits = (queries.fine @ targets.fine.T + queries.coarse @ targets.coarse.T) / config.temperature
    same = queries.codes[:, None] == targets.codes[None, :]
    inside = torch.logsumexp(logits.masked_fill(~same, LOWEST), dim=1)
    return (torch.logsumexp(logits, dim=1) - inside).mean()


def _hardest_wrong_nodes(queries: Samples, target: EmbeddedView, count: int) -> Tensor:
    """Nodes of the whole target view that look most like some query without being of its structure.

    Random places hardly ever lie near the border of a structure, where matching decides.
    """
    with torch.no_grad():
        codes = target.view.codes.reshape(-1)[target.nodes]
        return _most_similar_nodes(queries, target, queries.codes[:, None] == codes[None, :], count)


def _most_similar_nodes(queries: Samples, target: EmbeddedView, excluded: Tensor, count: int) -> Tensor:
    """The nodes of the target view that are among the `count` most similar ones of a query; `excluded` (queries,
    nodes) says which must not be."""
    vectors = torch.cat([queries.fine, queries.coarse], dim=1)
    similarity = (vectors @ target.everywhere.T).masked_fill_(excluded, LOWEST)
    chosen = similarity.topk(min(count, similarity.shape[1]), dim=1).indices
    return target.nodes[chosen.unique()]


def contrast_atlas(
    query_view: EmbeddedView,
    target_view: EmbeddedView,
    transform: Tensor,
    landmarks: Tensor,
    config: LossConfig,
) -> Tensor | None:
    """Coarse contrast between subjects whose structures were aligned by an affine transform.

    Args:
        transform: (3, 4), query subject's mm to target subject's mm, see `fit_affine`.
        landmarks: (k, 3) landmarks of the query subject; only points within `atlas_reach` of one take part.

    The target distribution is a Gaussian of `atlas_sigma` around the transformed point. None if no point of the
    query view is expected inside the target view.
    """
    queries = query_view.pool.take(slice(4 * config.queries))
    targets = target_view.pool
    if len(queries) == 0 or len(targets) == 0:
        return None
    expected = queries.positions @ transform[:, :3].T + transform[:, 3]
    distance = torch.cdist(expected, targets.positions)
    near = torch.cdist(queries.positions, landmarks).amin(dim=1) < config.atlas_reach
    picks = torch.nonzero(near & (distance.amin(dim=1) < config.atlas_sigma))[: config.queries, 0]
    if len(picks) < FEWEST_QUERIES:
        return None
    wanted = functional.softmax(-(distance[picks] ** 2) / (2 * config.atlas_sigma**2), dim=1)
    logits = queries.coarse[picks] @ targets.coarse.T / config.temperature
    return functional.cross_entropy(logits, wanted) - _entropy(wanted)


def fit_affine(source: Tensor, target: Tensor, ridge: float = 400.0) -> Tensor:
    """Affine (3, 4) from `source` (k, 3) to `target` (k, 3), drawn to a pure translation by `ridge` (mm squared
    per point), so that nearly coplanar landmarks stay harmless."""
    source_center, target_center = source.mean(dim=0), target.mean(dim=0)
    centered, wanted = source - source_center, target - target_center
    damping = torch.eye(3, dtype=source.dtype, device=source.device) * ridge
    covariance = centered.T @ centered / len(source) + damping
    matrix = torch.linalg.solve(covariance, centered.T @ wanted / len(source) + damping).T
    return torch.cat([matrix, (target_center - matrix @ source_center)[:, None]], dim=1)


def _entropy(distribution: Tensor) -> Tensor:
    return -(distribution * distribution.clamp(min=1e-12).log()).sum(dim=1).mean()
