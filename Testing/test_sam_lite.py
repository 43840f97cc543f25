"""The sam-lite network: its budget, its geometry, and that inference computes what training did."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from SAMRegistrationLib.networks import sam_lite
from SAMRegistrationLib.networks.sam_lite import ConvolutionUnit, SamLite, preprocess_ct


@pytest.fixture(scope="module")
def small() -> SamLite:
    torch.manual_seed(0)
    return SamLite(widths=(16, 32, 48, 56), embedding_channels=16).eval()


def test_the_network_has_at_most_four_million_parameters():
    assert sum(parameter.numel() for parameter in SamLite().parameters()) <= 4_000_000


def test_embedding_192x160x256_takes_at_most_0_8_teraflop():
    network = SamLite().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, 48, 32, 48))
    assert counter.get_total_flops() / (48 * 32 * 48) * (192 * 160 * 256) <= 0.8e12


@settings(max_examples=8, deadline=None)
@given(size=st.tuples(*[st.integers(1, 35)] * 3))
def test_any_size_gives_unit_vectors_for_every_started_cell(small, size):
    with torch.no_grad():
        fine, coarse = small(torch.rand(1, 1, *size))
    assert fine.shape == (1, 16, *(-(-length // 2) for length in size))
    assert coarse.shape == (1, 16, *(-(-length // 8) for length in size))
    for vectors in (fine, coarse):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones_like(vectors[:, 0]))


def test_a_size_that_is_no_multiple_of_the_stride_is_continued_with_air(small):
    volume = torch.rand(1, 1, 30, 20, 37)
    padded = torch.zeros(1, 1, 32, 32, 48)
    padded[..., :30, :20, :37] = volume
    with torch.no_grad():
        fine, coarse = small(volume)
        padded_fine, padded_coarse = small(padded)
    torch.testing.assert_close(fine, padded_fine[..., :15, :10, :19])
    torch.testing.assert_close(coarse, padded_coarse[..., :4, :3, :5])


@pytest.mark.parametrize("size", [(64, 32, 48), (50, 29, 31)])
def test_slices_of_a_large_volume_give_what_the_whole_does(small, monkeypatch, size):
    volume = torch.rand(1, 1, *size)
    with torch.no_grad():
        fine, coarse = small(volume)
        monkeypatch.setattr(sam_lite, "_LARGEST_WHOLE", 0)
        for slices in (4, 8, 14):
            monkeypatch.setattr(sam_lite, "_SLICES_AT_ONCE", slices)
            into = torch.full_like(fine, torch.nan)
            found, beside = small(volume, into)
            assert found is into
            torch.testing.assert_close(found, fine, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(beside, coarse, rtol=1e-4, atol=1e-5)
            inner = torch.full_like(fine[:, :, 4:11], torch.nan)
            small(volume, inner, 4)
            torch.testing.assert_close(inner, fine[:, :, 4:11], rtol=1e-4, atol=1e-5)


def test_the_fused_network_computes_the_same_with_plain_weights(small):
    volume = torch.rand(1, 1, 24, 32, 16)
    fused = small.fused()
    with torch.no_grad():
        for expected, found in zip(small(volume), fused(volume), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(name.endswith("gain") for name in fused.state_dict())


def test_bfloat16_changes_vectors_by_less_than_half_a_degree_of_similarity(small):
    volume = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = small(volume)
        found = small.fused().to(torch.bfloat16)(volume.to(torch.bfloat16))
    for half, full in zip(found, expected, strict=True):
        assert float((half.float() * full).sum(dim=1).min()) > 0.99


def test_each_stem_cell_holds_its_eight_voxels():
    volume = torch.arange(4 * 6 * 8, dtype=torch.float32).reshape(1, 1, 4, 6, 8)
    cells = sam_lite._space_to_depth(volume)
    assert cells.shape == (1, 8, 2, 3, 4)
    for z, y, x in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        inside = volume[0, 0, 2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert torch.equal(cells[0, :, z, y, x], inside.reshape(-1))


def test_a_unit_keeps_the_variance_of_rectified_gaussians():
    """With gain 1, as Brock et al. 2021 derive; the weights' mean per output channel is 0."""
    torch.manual_seed(0)
    unit = ConvolutionUnit(64, 32, relu=False)
    with torch.no_grad():
        out = unit(torch.randn(1, 64, 16, 16, 16).relu())[..., 1:-1, 1:-1, 1:-1]
        weight = unit._weight()
    assert float(out.var(dim=(0, 2, 3, 4)).mean()) == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3, 4)), torch.zeros(32), atol=1e-7, rtol=0)


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    network = SamLite(widths=(16, 32, 48, 56), embedding_channels=16)
    fine, coarse = network(torch.rand(1, 1, 32, 32, 32))
    (fine[:, :4].sum() + coarse[:, :4].sum()).backward()
    without = [name for name, value in network.named_parameters() if not value.grad.abs().sum() > 0]
    assert without == []


def test_the_window_maps_its_knots_to_its_values_and_clips():
    hu = torch.tensor([-3000.0, -1024.0, -612.0, -200.0, 25.0, 250.0, 925.0, 1600.0, 5000.0])
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 1.0, 1.5, 1.75, 2.0, 2.0])
    torch.testing.assert_close(preprocess_ct(hu), expected)


@given(hu=st.lists(st.integers(-1024, 3071), min_size=2, max_size=20))
def test_the_window_never_reverses_an_order(hu):
    values = preprocess_ct(torch.tensor(sorted(hu), dtype=torch.int16))
    assert values.dtype == torch.float32
    assert bool((values.diff() >= 0).all())
