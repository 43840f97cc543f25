"""MIND-SSC is its formula, and says nothing about the unit or the sign of the intensities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.features.mind import MindExtractor, mind_ssc

NEIGHBORS = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
"""Of the six-neighborhood; the twelve pairs at a distance of sqrt(2) are compared."""


def slow_mind(volume: NDArray[np.float64], radius: int, dilation: int) -> NDArray[np.float64]:
    """The descriptor voxel by voxel in float64, the channels in any order; the volume goes on as at its edge."""
    pairs = [(a, b) for a, b in itertools.combinations(NEIGHBORS, 2) if np.sum((a - b) ** 2) == 2]
    window = np.array(list(itertools.product(range(-radius, radius + 1), repeat=3)))
    limits = np.array(volume.shape) - 1

    def at(index: NDArray[np.int_]) -> float:
        return float(volume[tuple(np.clip(index, 0, limits))])

    distance = np.zeros((12, *volume.shape))
    for voxel in np.ndindex(volume.shape):
        for channel, (a, b) in enumerate(pairs):
            squares = [
                (at(voxel + dilation * a + o) - at(voxel + dilation * b + o)) ** 2 for o in np.array(window)
            ]
            distance[(channel, *voxel)] = np.mean(squares)
    distance -= distance.min(axis=0)
    variance = distance.mean(axis=0)
    variance = np.clip(variance, variance.mean() * 1e-3, variance.mean() * 1e3)
    return np.exp(-distance / variance)


def noise(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 100, shape)


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1), (1, 1)])
def test_the_descriptor_is_the_published_formula(radius: int, dilation: int) -> None:
    volume = noise((4, 6, 5))
    found = mind_ssc(torch.from_numpy(volume)[None, None], radius, dilation)[0].numpy()
    expected = slow_mind(volume, radius, dilation)
    # Which pair comes first is a convention; as a set per voxel the values must agree.
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=2e-5)


def test_every_channel_compares_one_pair_of_neighbors_everywhere() -> None:
    volume = noise((4, 5, 6), 1)
    found = mind_ssc(torch.from_numpy(volume)[None, None])[0].numpy().reshape(12, -1)
    expected = slow_mind(volume, 1, 2).reshape(12, -1)
    differences = np.abs(found[:, None] - expected[None]).max(axis=-1)
    assert sorted(differences.argmin(axis=1)) == list(range(12))
    assert differences.min(axis=1).max() < 2e-5


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 500.0), (-0.5, 20.0)])
def test_linear_changes_of_intensity_change_nothing(scale: float, shift: float) -> None:
    volume = torch.from_numpy(noise((8, 9, 7), 2)).float()[None, None]
    torch.testing.assert_close(mind_ssc(volume * scale + shift), mind_ssc(volume), atol=1e-4, rtol=0)


def test_a_constant_volume_gives_finite_values() -> None:
    assert torch.equal(mind_ssc(torch.full((1, 1, 6, 6, 6), 7.0)), torch.ones(1, 12, 6, 6, 6))


def test_features_are_unit_vectors_of_block_means_on_the_grid_of_the_blocks() -> None:
    volume = torch.from_numpy(noise((9, 8, 10), 3)).float()
    image = Image(volume, Grid((10, 8, 9), (2.0, 2.0, 2.0), (5.0, -3.0, 8.0)))
    features = MindExtractor(spacing=2.0, stride=2).extract(image)
    assert features.coarse is None
    fine = features.fine
    assert fine.data.shape == (1, 12, 5, 4, 5)
    torch.testing.assert_close(fine.data.norm(dim=1), torch.ones(1, 5, 4, 5))
    block = mind_ssc(volume[None, None])[0, :, 2:4, 4:6, 6:8].mean(dim=(1, 2, 3))
    torch.testing.assert_close(fine.data[0, :, 1, 2, 3], block / block.norm())
    np.testing.assert_allclose(fine.grid.to_world([3, 2, 1]), image.grid.to_world([6.5, 4.5, 2.5]))
