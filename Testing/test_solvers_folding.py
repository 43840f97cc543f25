"""Folds are taken out and the rest of the field stays as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import noise, smooth_deformation

from SAMRegistrationLib.solvers.filters import gaussian
from SAMRegistrationLib.solvers.folding import folded_fraction, remove_folds
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant, upsample


def test_a_field_without_folds_is_returned_as_it_is() -> None:
    u = smooth_deformation((12, 12, 12), 2.0, 5.0)
    assert folded_fraction(u, 0.05) == 0.0
    assert remove_folds(u) is u


def test_a_single_fold_is_removed_and_what_is_far_from_it_keeps_its_values() -> None:
    u = smooth_deformation((32, 32, 32), 2.0, 8.0)
    folded = u.clone()
    folded[:, 0, 16, 16, 8] += 3.0
    assert folded_fraction(folded) > 0
    repaired = remove_folds(folded)
    assert smallest_corner_determinant(repaired).min() > 0.05
    assert torch.equal(repaired[..., 16:], u[..., 16:])
    assert (repaired - u).abs().max() < 1.0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 6.0), st.floats(0.7, 3.0))
def test_any_field_ends_without_folds(seed: int, amplitude: float, sigma: float) -> None:
    u = gaussian(noise((1, 3, 16, 16, 16), seed), sigma)
    u *= amplitude / u.std()
    assert smallest_corner_determinant(remove_folds(u)).min() > 0.05


def test_a_badly_folded_field_is_repaired_well_enough_for_a_finer_grid() -> None:
    u = gaussian(noise((1, 3, 20, 20, 20), 3), 2.0)
    u *= 3.0 / u.std()
    assert folded_fraction(upsample(u, (40, 40, 40))) > 0.1
    assert folded_fraction(upsample(remove_folds(u), (40, 40, 40))) < 0.001
    assert folded_fraction(upsample(remove_folds(u, threshold=0.3), (40, 40, 40))) == 0.0


def test_a_tolerated_fraction_leaves_the_field_alone() -> None:
    u = torch.zeros(1, 3, 16, 16, 16)
    u[:, 0, 8, 8, 8] = 3.0
    fraction = folded_fraction(u, 0.05)
    assert 0 < fraction < 0.01
    assert remove_folds(u, target_fraction=0.01) is u
    assert folded_fraction(remove_folds(u, target_fraction=fraction / 2), 0.05) == pytest.approx(
        0, abs=fraction / 2
    )
