"""Correlation volumes: what they mean at every shift, at the border, and in the gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib.networks import correlation
from SAMRegistrationLib.networks.correlation import embedding_correlation, feature_differences

SHAPE = (5, 6, 7)


def unit_vectors(channels: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn((1, channels, *shape), generator=generator), dim=1)


def clamped(volume: torch.Tensor, z: int, y: int, x: int) -> torch.Tensor:
    """The vector of a voxel, or that of the nearest voxel of the border."""
    z, y, x = (min(max(index, 0), size - 1) for index, size in zip((z, y, x), volume.shape[2:], strict=True))
    return volume[0, :, z, y, x]


@pytest.mark.parametrize("step", [1, 2])
def test_correlations_are_cosines_at_the_shifts(step):
    fixed, moving = unit_vectors(20, 1), unit_vectors(20, 2)
    found = embedding_correlation(fixed, moving, step)
    assert found.shape == (1, 27, *SHAPE)
    for number, shift in enumerate(product((-step, 0, step), repeat=3)):
        for z, y, x in ((0, 0, 0), (2, 3, 3), (4, 5, 6)):
            expected = clamped(fixed, z, y, x) @ clamped(moving, z + shift[0], y + shift[1], x + shift[2])
            torch.testing.assert_close(found[0, number, z, y, x], expected)


def test_enlarged_maps_are_correlated_as_unit_vectors():
    fixed, moving = unit_vectors(20, 1), unit_vectors(20, 2)
    stride = (2, 1, 4)
    enlarged = [
        functional.normalize(functional.interpolate(volume, scale_factor=stride, mode="trilinear"), dim=1)
        for volume in (fixed, moving)
    ]
    torch.testing.assert_close(
        embedding_correlation(fixed, moving, 2, stride), embedding_correlation(*enlarged, 2), rtol=1e-4, atol=1e-5
    )


def test_the_true_shift_correlates_best():
    moving = unit_vectors(24, 3)
    fixed = moving.roll((0, -2, 2), dims=(2, 3, 4))
    best = embedding_correlation(fixed, moving, 2)[0, :, 2:3, 2:4, 2:5].flatten(1).argmax(dim=0)
    assert best.unique().tolist() == [list(product((-2, 0, 2), repeat=3)).index((0, 2, -2))]


def padded_features(radius: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    fixed = torch.randn((2, 3, 2, 3, 4), generator=generator, dtype=dtype)
    padded = torch.randn((2, 3, *(size + 2 * radius for size in (2, 3, 4))), generator=generator, dtype=dtype)
    return fixed, padded


@pytest.mark.parametrize("values_in_cache", [1, 2**18])
def test_differences_are_summed_over_channels_at_every_shift(values_in_cache, monkeypatch):
    monkeypatch.setattr(correlation, "VALUES_IN_CACHE", values_in_cache)
    radius = 2
    fixed, padded = padded_features(radius)
    found = feature_differences(fixed, padded, radius)
    assert found.shape == (2, 125, 2, 3, 4)
    for number, (z, y, x) in enumerate(product(range(5), repeat=3)):
        window = padded[:, :, z : z + 2, y : y + 3, x : x + 4]
        torch.testing.assert_close(found[:, number], (fixed - window).abs().sum(dim=1))


def test_the_gradient_of_differences_is_exact():
    fixed, padded = padded_features(1, torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: feature_differences(a, b, 1), (fixed.requires_grad_(), padded.requires_grad_())
    )
