"""Blending of two displacements by how well the features agree under them."""

from __future__ import annotations

import pytest
import torch
from solver_cases import simple_features, textured

from SAMRegistrationLib.methods.blending import Compared, blended

SHAPE = (32, 32, 32)


@pytest.fixture(scope="module")
def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]]:
    """The truth, two fields that know one half of it each, and the features that tell which."""
    case = textured(32, amplitude=1.0)
    left, right = case.u.clone(), case.u.clone()
    left[..., 16:] = 0.0
    right[..., :16] = 0.0
    return case.u, left, right, [Compared(simple_features(case.fixed), simple_features(case.moving), 1.0)]


def test_each_field_is_followed_where_it_is_right(
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]],
) -> None:
    truth, left, right, features = halves
    u, share = blended(left, right, features, None, first_is_better=True)
    assert share[..., :10].mean() > 0.8 > 0.2 > share[..., 22:].mean()
    errors = [float((field - truth).norm(dim=1).mean()) for field in (u, left, right)]
    assert errors[0] < 0.5 * min(errors[1:])


def test_where_both_agree_nothing_changes(
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]],
) -> None:
    _, left, _, features = halves
    u, _ = blended(left, left, features, None, first_is_better=True)
    assert torch.allclose(u, left, atol=1e-6)


@pytest.mark.parametrize("first_is_better", [True, False])
def test_where_nothing_is_known_the_better_field_as_a_whole_is_followed(
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]], first_is_better: bool
) -> None:
    _, left, right, features = halves
    known = torch.ones((1, 1, *SHAPE))
    known[:, :, 16:] = 0.0
    _, everywhere = blended(left, right, features, None, first_is_better=first_is_better)
    _, share = blended(left, right, features, known, first_is_better=first_is_better)
    beyond = share[:, :, 24:]
    assert torch.allclose(beyond, torch.full_like(beyond, float(first_is_better)), atol=1e-3)
    assert torch.allclose(share[:, :, :4], everywhere[:, :, :4], atol=0.02)


def test_far_apart_the_better_field_as_a_whole_is_followed_alone(
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]],
) -> None:
    truth, _, _, features = halves
    for first_is_better in (True, False):
        _, share = blended(truth, truth + 40.0, features, None, first_is_better=first_is_better)
        assert torch.allclose(share, torch.full_like(share, float(first_is_better)), atol=1e-3)
