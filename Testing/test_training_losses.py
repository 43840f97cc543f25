"""The losses against slow references, and what they must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRegistrationLib.training.config import LossConfig, ViewConfig
from SAMRegistrationLib.training.embedding_samples import EmbeddedView, Samples, draw_places
from SAMRegistrationLib.training.losses import contrast_atlas, contrast_organs, contrast_views, fit_affine
from SAMRegistrationLib.training.negative_bank import NegativeBank
from SAMRegistrationLib.training.views import Source, View, cut_view, draw_placements, locate

SHAPE = (32, 32, 32)
CONFIG = LossConfig(
    queries=12,
    pool=40,
    hard_negatives=9,
    random_negatives=20,
    organ_queries=6,
    organ_targets=10,
    organ_negatives=4,
    mined_negatives=3,
    temperature=0.2,
)


def views(seed: int = 0) -> tuple[View, View]:
    size = (50, 50, 50)
    codes = torch.ones((1, 1, *size), dtype=torch.uint8)
    codes[..., 15:25, 15:25, 15:25] = 2
    codes[..., 28:38, 28:38, 28:38] = 3
    source = Source(torch.zeros((1, 1, *size), dtype=torch.int16), codes, 2.0)
    config = ViewConfig(shape=SHAPE, offset=2.0, far_probability=0.0, quarter_turn_probability=0.0)
    first, second = draw_placements(source, config, torch.Generator().manual_seed(seed))
    return cut_view(source, first, SHAPE), cut_view(source, second, SHAPE)


def random_embedding(view: View, seed: int, config: LossConfig = CONFIG) -> EmbeddedView:
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn((8, 16, 16, 16), generator=generator).requires_grad_()
    coarse = torch.randn((8, 4, 4, 4), generator=generator).requires_grad_()
    return EmbeddedView(view, fine, coarse, config, *draw_places([view], config, generator))


def position_embedding(view: View, seed: int, config: LossConfig = CONFIG) -> EmbeddedView:
    """Random Fourier features of the source position: similar vectors at near places, in any view."""
    waves = torch.randn((32, 3), generator=torch.Generator().manual_seed(7)) / 12

    def encode(mesh: torch.Tensor) -> torch.Tensor:
        phase = torch.einsum("kc,cdhw->kdhw", waves, mesh)
        return torch.cat([phase.sin(), phase.cos()])

    coarse = encode(torch.nn.functional.avg_pool3d(view.mesh[None], 4)[0])
    return EmbeddedView(
        view, encode(view.mesh), coarse, config, *draw_places([view], config, torch.Generator().manual_seed(seed))
    )


def test_view_contrast_agrees_with_a_reference_in_float64():
    first, second = (random_embedding(view, seed) for seed, view in enumerate(views()))
    others = torch.nn.functional.normalize(torch.randn(15, 8), dim=1)
    fine, coarse = contrast_views(first, second, others, CONFIG)
    expected = np.mean(
        [reference(first, second, (first, second), others), reference(second, first, (first, second), others)],
        axis=0,
    )
    np.testing.assert_allclose([float(fine.detach()), float(coarse.detach())], expected, rtol=1e-4)


def reference(query: EmbeddedView, target: EmbeddedView, both: tuple[EmbeddedView, ...], others: torch.Tensor):
    """Loops over queries and negatives, in the order in which the places were drawn."""
    voxels, found = locate(target.view, query.pool.positions)
    picks = torch.nonzero(found & target.is_visible(voxels))[: CONFIG.queries, 0].tolist()
    mined = target.at_nodes(hardest_far_nodes(query.pool.take(picks), target))
    pools = {
        name: torch.cat([getattr(samples, name) for samples in (both[0].pool, both[1].pool, mined)])
        .detach()
        .double()
        .numpy()
        for name in ("positions", "fine", "coarse")
    }
    positives = {
        "fine": target.fine_at(voxels).detach().double().numpy(),
        "coarse": target.coarse_at(voxels).detach().double().numpy(),
    }
    stride = len(pools["fine"]) // CONFIG.random_negatives
    losses = {"fine": [], "coarse": []}
    for pick in picks:
        place = query.pool.positions[pick].double().numpy()
        vectors = {name: getattr(query.pool, name)[pick].detach().double().numpy() for name in losses}
        distance = np.linalg.norm(pools["positions"] - place, axis=1)
        similarity = {name: pools[name] @ vectors[name] for name in losses}
        for name, radius in (("fine", CONFIG.fine_radius), ("coarse", CONFIG.coarse_radius)):
            ranking = similarity["fine"] + similarity["coarse"] if name == "fine" else similarity["coarse"]
            allowed = np.flatnonzero(distance > radius)
            hardest = allowed[np.argsort(-ranking[allowed])][: CONFIG.hard_negatives]
            regular = [index for index in range(0, len(distance), stride) if distance[index] > radius]
            negatives = [*similarity[name][hardest], *similarity[name][regular]]
            if name == "coarse":
                negatives += list(others.double().numpy() @ vectors[name])
            logits = np.array([vectors[name] @ positives[name][pick], *negatives]) / CONFIG.temperature
            losses[name].append(np.log(np.exp(logits).sum()) - logits[0])
    return np.mean(losses["fine"]), np.mean(losses["coarse"])


def hardest_far_nodes(queries: Samples, target: EmbeddedView) -> torch.Tensor:
    """By sorting all visible places of the target for every query."""
    everywhere = target.at_nodes(target.nodes)
    chosen: set[int] = set()
    for index in range(len(queries)):
        similarity = everywhere.fine @ queries.fine[index] + everywhere.coarse @ queries.coarse[index]
        distance = (everywhere.positions - queries.positions[index]).norm(dim=1)
        order = similarity.detach().argsort(descending=True).tolist()
        far = [place for place in order if distance[place] > CONFIG.fine_radius][: CONFIG.mined_negatives]
        chosen |= {int(target.nodes[place]) for place in far}
    return torch.tensor(sorted(chosen))


def test_vectors_that_encode_the_position_are_rewarded():
    first, second = views()
    good = contrast_views(position_embedding(first, 0), position_embedding(second, 1), None, CONFIG)
    bad = contrast_views(random_embedding(first, 0), random_embedding(second, 1), None, CONFIG)
    assert float(good[0]) < float(bad[0].detach()) - 1
    assert float(good[1]) < float(bad[1].detach()) - 0.3


def test_gradients_reach_both_maps():
    first, second = (random_embedding(view, seed) for seed, view in enumerate(views()))
    fine, coarse = contrast_views(first, second, None, CONFIG)
    for rows, loss in ((first.fine_rows, fine), (second.coarse_rows, coarse)):
        assert float(torch.autograd.grad(loss, rows, retain_graph=True)[0].abs().sum()) > 0


def test_views_that_show_nothing_give_no_loss():
    first, second = views()
    empty = View(second.image, second.mesh, second.codes, torch.zeros_like(second.visible), second.matrix)
    assert contrast_views(random_embedding(first, 0), random_embedding(empty, 1), None, CONFIG) is None


def test_organ_contrast_is_minus_the_log_of_the_share_inside_the_structure():
    query, target = (random_embedding(view, seed) for seed, view in enumerate(views()))
    found = contrast_organs(query, target, CONFIG)
    shares = []
    everything = [*target.organs.values(), target.pool, target.at_nodes(hardest_wrong_nodes(query, target))]
    for code in (2, 3):
        for index in range(CONFIG.organ_queries):
            own = query.organs[code]
            inside = total = 0.0
            for samples in everything:
                for other in range(len(samples)):
                    similarity = own.fine[index] @ samples.fine[other] + own.coarse[index] @ samples.coarse[other]
                    mean = float(similarity.detach()) / 2
                    weight = np.exp(mean / (CONFIG.temperature / 2))
                    total += weight
                    inside += weight * (float(samples.codes[other]) == code)
            shares.append(-np.log(inside / total))
    assert float(found.detach()) == pytest.approx(np.mean(shares), rel=1e-4)


def hardest_wrong_nodes(query: EmbeddedView, target: EmbeddedView) -> torch.Tensor:
    """By sorting all visible places of the target for every query."""
    everywhere = target.at_nodes(target.nodes)
    chosen: set[int] = set()
    for code in (2, 3):
        own = query.organs[code].take(slice(CONFIG.organ_queries))
        similarity = (own.fine @ everywhere.fine.T + own.coarse @ everywhere.coarse.T).detach()
        for row in similarity:
            order = [index for index in row.argsort(descending=True).tolist() if everywhere.codes[index] != code]
            chosen |= {int(target.nodes[index]) for index in order[: CONFIG.organ_negatives]}
    return torch.tensor(sorted(chosen))


def test_subjects_without_a_common_structure_give_no_organ_loss():
    first, second = views()
    bare = View(second.image, second.mesh, second.codes.clamp(max=1), second.visible, second.matrix)
    assert contrast_organs(random_embedding(first, 0), random_embedding(bare, 1), CONFIG) is None


def test_atlas_contrast_prefers_vectors_that_agree_with_the_transform():
    first, second = views()
    identity = torch.eye(3, 4)
    shifted = identity.clone()
    shifted[:, 3] = 25.0
    landmarks = torch.tensor([[50.0, 50.0, 50.0]])
    config = LossConfig(queries=30, pool=400, organ_targets=10)
    maps = position_embedding(first, 0, config), position_embedding(second, 1, config)
    right = contrast_atlas(*maps, identity, landmarks, config)
    wrong = contrast_atlas(*maps, shifted, landmarks, config)
    assert 0 <= float(right) < float(wrong)


def test_atlas_contrast_needs_points_near_landmarks():
    first, second = views()
    far = torch.tensor([[900.0, 0.0, 0.0]])
    maps = position_embedding(first, 0), position_embedding(second, 1)
    assert contrast_atlas(*maps, torch.eye(3, 4), far, CONFIG) is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_an_affine_map_is_recovered_from_its_landmarks(seed):
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))
    offset = rng.uniform(-50, 50, 3)
    points = rng.uniform(-80, 80, (12, 3))
    found = fit_affine(torch.tensor(points), torch.tensor(points @ matrix.T + offset), ridge=0.0).numpy()
    np.testing.assert_allclose(found, np.concatenate([matrix, offset[:, None]], axis=1), atol=1e-8)


def test_a_translation_survives_the_ridge_and_coplanar_landmarks():
    points = torch.tensor([[0.0, 0, 0], [50, 0, 0], [0, 50, 0], [50, 50, 0]], dtype=torch.float64)
    found = fit_affine(points, points + torch.tensor([3.0, -4.0, 5.0]))
    expected = torch.tensor([[1.0, 0, 0, 3], [0, 1, 0, -4], [0, 0, 1, 5]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_the_bank_offers_the_latest_vectors_of_other_regions_only():
    config = LossConfig(other_negatives=32, pool=40)
    bank = NegativeBank(config)
    view = random_embedding(views()[0], 0, config)
    assert bank.strangers("head") is None
    bank.add("head", [view])
    assert bank.strangers("head") is None
    assert torch.equal(bank.strangers("limb"), view.pool.coarse[:4])
    for _ in range(20):
        bank.add("head", [view, view])
    strangers = bank.strangers("limb")
    assert len(strangers) == 32 and not strangers.requires_grad
    again = NegativeBank(config)
    again.restore(bank.state(), torch.device("cpu"))
    assert torch.equal(again.strangers("limb"), strangers)
