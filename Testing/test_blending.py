"""Blending of two displacements by how well the features agree under them."""

from __future__ import annotations

import pytest
import torch
from solver_cases import simple_features, textured

from SAMRegistrationLib.methods.blending import Compared, blended
from SAMRegistrationLib.solvers.ops import zero_field

SHAPE = (32, 32, 32)


@pytest.fixture(scope="module")
def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]]:
    """The truth, two fields that know one half of it each, and the features that tell which."""
    case = textured(32)
    left, right = case.u.clone(), case.u.clone()
    left[..., 16:] = 0.0
    right[..., :16] = 0.0
    return case.u, left, right, [Compared(simple_features(case.fixed), simple_features(case.moving), 1.0, 2)]


def test_each_field_is_followed_where_it_is_right(
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]],
) -> None:
    truth, left, right, features = halves
    u, share = blended(left, right, features, None)
    assert share[..., :10].mean() > 0.9 > 0.1 > share[..., 22:].mean()
    errors = [float((field - truth).norm(dim=1).mean()) for field in (u, left, right)]
    assert errors[0] < 0.5 * min(errors[1:])


def test_where_nothing_counts_or_nothing_differs_both_count_alike(
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Compared]],
) -> None:
    _, left, right, features = halves
    _, share = blended(left, right, features, torch.zeros((1, 1, *SHAPE)))
    assert torch.allclose(share, torch.full_like(share, 0.5))
    u, _ = blended(left, left, features, None)
    assert torch.allclose(u, left, atol=1e-6)
    assert torch.equal(blended(zero_field(SHAPE), zero_field(SHAPE), features, None)[0], zero_field(SHAPE))
