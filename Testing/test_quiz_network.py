"""The query point network: shapes, what its answers may depend on, and that it can learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from SAMRegistrationLib.networks.quiz import Quiz, Tokens, cell_positions, sample_at

SMALL: dict[str, Any] = {"channels": 16, "widths": (8, 8, 16, 16), "layers": 2, "heads": 2}
OURS = {**SMALL, "embedding_channels": 6, "content_queries": True, "pointing": True}


def volumes(seed: int = 0, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, 1, 1, size, size, size, generator=generator)
    return first, second


def embeddings(seed: int = 0, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 1, 6, size, size, size, generator=generator)
    return first, second


def queries(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(1, count, 3, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def test_the_published_network_has_the_published_joint_map() -> None:
    network = Quiz().eval()
    assert 14e6 < sum(parameter.numel() for parameter in network.parameters()) < 16e6
    with torch.no_grad():
        joint = network.encode(*volumes(size=64))
    # 128 channels; an eighth of the size along each axis, twice along the last one.
    assert joint.reference.shape == (1, 128, 8, 8, 8)
    assert joint.tokens.shape == (8, 8, 16) and joint.tokens.values.shape == (1, 8 * 8 * 16, 128)


@pytest.mark.parametrize("options", [SMALL, OURS])
def test_there_is_an_answer_for_every_query(options: dict[str, Any]) -> None:
    network = Quiz(**options).eval()
    given = embeddings() if options is OURS else None
    with torch.no_grad():
        answers = network(*volumes(), queries(7), given)
    assert answers.displacement.shape == (1, 7, 3) and answers.log_variance.shape == (1, 7)
    assert torch.isfinite(answers.displacement).all()
    if options is OURS:
        assert answers.pointing.shape == (1, 7, 5, 5, 5)
        torch.testing.assert_close(answers.pointing.sum(dim=(2, 3, 4)), torch.ones(1, 7))
    else:
        assert answers.pointing is None


@pytest.mark.parametrize("options", [SMALL, OURS])
def test_an_answer_does_not_depend_on_what_else_is_asked(options: dict[str, Any]) -> None:
    network = Quiz(**options).eval()
    given = embeddings() if options is OURS else None
    asked = queries(9)
    with torch.no_grad():
        joint = network.encode(*volumes(), given)
        together = network.ask(joint, asked)
        turned = network.ask(joint, asked.flip(1))
        alone = network.ask(joint, asked[:, :1])
    torch.testing.assert_close(together.displacement.flip(1), turned.displacement, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.displacement[:, :1], alone.displacement, rtol=1e-4, atol=1e-5)


def test_pairs_of_a_batch_do_not_disturb_each_other() -> None:
    network = Quiz(**OURS).eval()
    pairs = [(volumes(seed), embeddings(seed)) for seed in (0, 1)]
    # The second volume fills less of its cube, so that the batch has tokens to fill up.
    pairs[1][1][1][:, :, :3] = 0
    asked = queries(4)
    with torch.no_grad():
        alone = [network(*images, asked, given).displacement for images, given in pairs]
        together = network(
            torch.cat([images[0] for images, _ in pairs]),
            torch.cat([images[1] for images, _ in pairs]),
            asked.expand(2, -1, -1),
            (torch.cat([e[0] for _, e in pairs]), torch.cat([e[1] for _, e in pairs])),
        ).displacement
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-5)


def test_every_parameter_learns() -> None:
    network = Quiz(**OURS)
    answers = network(*volumes(), queries(5), embeddings())
    (answers.displacement.square().sum() + answers.log_variance.sum()).backward()
    untouched = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert untouched == []


def test_both_volumes_go_through_the_same_encoder() -> None:
    network = Quiz(**SMALL).eval()
    first, second = volumes()
    with torch.no_grad():
        one, other = network.encode(first, second), network.encode(second, first)
        difference = one.searched.values - other.tokens.values.unflatten(1, (4, 4, 8))[:, :, :, :4].flatten(1, 3)
    # The same features at the same places; only the code of the side differs, which is the same everywhere.
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=1e-3, atol=1e-4)


def test_an_untrained_pointer_points_where_the_embedding_is_the_same() -> None:
    torch.manual_seed(0)
    network = Quiz(**OURS).eval()
    embedding, _ = embeddings(size=6)
    shifted = torch.roll(embedding, 1, dims=4)
    shifted[..., 0] = 0
    asked = cell_positions((6, 6, 6), torch.device("cpu"))[None]
    asked = asked[:, (asked[0, :, 0] < 0.8)]
    with torch.no_grad():
        answers = network(*volumes(), asked, (embedding, shifted))
    pointed = answers.pointing[0].flatten(1).argmax(dim=1)
    expected = cell_positions((6, 6, 6), torch.device("cpu"))
    moved = expected[pointed] - asked[0]
    right = (moved - torch.tensor([2 / 6, 0.0, 0.0])).norm(dim=1) < 1e-3
    assert right.float().mean() > 0.95


def test_tokens_are_the_present_cells_and_go_back_to_where_they_were() -> None:
    features = torch.arange(2 * 2 * 2 * 3.0).view(1, 2, 2, 2, 3)
    present = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    present[0, 0, 1, 1] = present[0, 1, 0, 0] = True
    tokens = Tokens.of(features, present)
    assert tokens.values.tolist() == [[[9.0, 10.0, 11.0], [12.0, 13.0, 14.0]]]
    spread = tokens.spread(torch.tensor([[[5.0, 7.0]]]))
    assert spread[0, 0, 0, 1, 1] == 5 and spread[0, 0, 1, 0, 0] == 7 and spread.sum() == 12


def test_positions_are_those_of_grid_sample() -> None:
    values = torch.rand(1, 2, 3, 4, 5)
    sampled = sample_at(values, cell_positions((3, 4, 5), values.device)[None])
    torch.testing.assert_close(sampled[0], values[0].flatten(1).T)


@pytest.mark.parametrize("options", [SMALL, OURS])
def test_embeddings_are_given_exactly_to_a_network_that_takes_them(options: dict[str, Any]) -> None:
    given = None if options is OURS else embeddings()
    with pytest.raises(ValueError, match="embedding"):
        Quiz(**options)(*volumes(), queries(1), given)


@pytest.mark.slow
def test_one_pair_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    network = Quiz(**SMALL)
    pair = volumes(size=16)
    asked = queries(30)
    turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    target = asked @ turn.T * 0.9 + 0.05
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(120):
        error = (asked + network(*pair, asked).displacement - target).square().sum(dim=-1).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.02 * errors[0]
