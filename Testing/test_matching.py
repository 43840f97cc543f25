"""Matching by features, against exhaustive search and with features whose partners are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.matching import (
    FeatureIndex,
    index_kept,
    indexed,
    match_points,
    query_vectors,
    stable_matches,
)
from SAMRegistrationLib.sampling import Outside, sample_points

GRID = Grid((20, 18, 16), (4.0, 4.0, 4.0), (-30.0, 10.0, 5.0))
SHIFT = np.array([8.0, -4.0, 12.0])


def _position_features(grid: Grid, shift: np.ndarray, channels: int = 48) -> Features:
    """Smooth unit vectors that are a function of the world position minus a shift, different everywhere."""
    generator = torch.Generator().manual_seed(3)
    frequencies = torch.randn(channels // 2, 3, generator=generator, dtype=torch.float64) / 25
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    world = grid.to_world(np.stack([x, y, z], -1)) - shift
    phase = torch.from_numpy(world) @ frequencies.T
    vectors = torch.cat([phase.cos(), phase.sin()], dim=-1).permute(3, 0, 1, 2)[None].float()
    fine = FeatureMap(functional.normalize(vectors, dim=1), grid)
    return Features(fine, None)


def _points() -> np.ndarray:
    generator = np.random.default_rng(0)
    return GRID.to_world(generator.uniform(5, 10, (60, 3)))


def test_points_are_found_where_their_features_went() -> None:
    matches = match_points(_points(), _position_features(GRID, np.zeros(3)), _position_features(GRID, SHIFT))
    errors = np.linalg.norm(matches.matched - matches.points - SHIFT, axis=1)
    assert np.median(errors) < 0.8, "below a quarter of a voxel"
    assert errors.max() < 4.0
    assert matches.score.min() > 0.95
    assert matches.cycle_error.max() < 4.0


def test_the_search_finds_the_voxel_of_an_exhaustive_search() -> None:
    features = _position_features(GRID, SHIFT)
    index = FeatureIndex(features)
    queries = FeatureIndex(_position_features(GRID, np.zeros(3))).vectors_at(_points())
    exhaustive = (queries @ features.fine.data[0].flatten(1)).max(dim=1)
    world, scores = index.nearest(queries)
    z, rest = np.divmod(exhaustive.indices.numpy(), 18 * 20)
    y, x = np.divmod(rest, 20)
    np.testing.assert_allclose(scores, exhaustive.values.numpy(), atol=1e-5)
    assert np.abs(GRID.to_voxel(world) - np.stack([x, y, z], 1)).max() <= 0.5 + 1e-6


def test_only_voxels_of_the_mask_are_found_also_in_volumes_of_odd_sizes() -> None:
    grid = Grid((17, 15, 13), GRID.spacing, GRID.origin)
    inside = torch.rand(grid.shape, generator=torch.Generator().manual_seed(2)) > 0.7
    features = _position_features(grid, SHIFT)
    index = FeatureIndex(features, Image(inside.float(), grid))
    points = grid.to_world(np.random.default_rng(4).uniform(0, (16, 14, 12), (50, 3)))
    queries = FeatureIndex(_position_features(grid, SHIFT)).vectors_at(points)
    world, scores = index.nearest(queries)
    likeness = (queries @ features.fine.data[0].flatten(1)).masked_fill(~inside.flatten(), -2.0)
    score, best = (values.numpy() for values in likeness.max(dim=1))
    np.testing.assert_allclose(scores, score, atol=1e-5)
    z, y, x = np.unravel_index(best, grid.shape)
    assert np.abs(grid.to_voxel(world) - np.stack([x, y, z], 1)).max() <= 0.5 + 1e-6
    beyond = grid.to_world([[-1, 3, 3], [17, 3, 3], [3, 15, 3], [3, 3, 13]])
    assert not index.allows(beyond).any()
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in grid.size], indexing="ij"), -1)
    np.testing.assert_array_equal(index.allows(grid.to_world(voxels)).numpy(), inside.permute(2, 1, 0).numpy())


def test_the_index_of_kept_features_is_made_once_for_a_mask() -> None:
    features, other = _position_features(GRID, SHIFT), _position_features(GRID, np.zeros(3))
    masks = [Image(torch.ones(GRID.shape), GRID) for _ in range(2)]
    assert indexed(features, masks[0]) is not indexed(features, masks[0])
    with index_kept(features):
        index = indexed(features, masks[0])
        assert indexed(features, masks[0]) is index and indexed(index, masks[1]) is index
        assert indexed(other, masks[0]) is not indexed(other, masks[0])
        assert indexed(features, masks[1]) is not index
    assert indexed(features, masks[1]) is not indexed(features, masks[1])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_a_query_is_the_mean_of_the_interpolated_vectors_around_it_also_at_the_edge(
    memory_format: torch.memory_format,
) -> None:
    features = _position_features(GRID, SHIFT).fine
    features = FeatureMap(features.data.contiguous(memory_format=memory_format), GRID)
    voxels = np.random.default_rng(1).uniform(-2, 21, (300, 3))
    steps = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    around = (torch.from_numpy(voxels).float()[:, None] + steps).flatten(0, 1)
    sampled = sample_points(features.data, around, Outside.EDGE).view(300, 27, -1)
    expected = functional.normalize(sampled.mean(dim=1), dim=1)
    torch.testing.assert_close(query_vectors(features, GRID.to_world(voxels)), expected, atol=1e-5, rtol=0)


def test_odd_sizes_and_masks_are_respected() -> None:
    grid = Grid((15, 13, 11), (4.0, 4.0, 4.0))
    mask = torch.zeros(grid.shape)
    mask[4:8, 4:9, 4:9] = 1
    index = FeatureIndex(_position_features(grid, np.zeros(3)), Image(mask, grid))
    everywhere = FeatureIndex(_position_features(grid, np.zeros(3)))
    outside = grid.to_world([[12.0, 11.0, 10.0], [0.0, 0.0, 0.0]])
    found = grid.to_voxel(index.nearest(everywhere.vectors_at(outside))[0])
    assert (found >= 3.5).all()
    assert (found <= 8.5).all()
    np.testing.assert_allclose(everywhere.nearest(everywhere.vectors_at(outside))[0], outside, atol=2.0)


def test_points_without_a_partner_are_told_by_their_cycle() -> None:
    fixed = _position_features(GRID, np.zeros(3))
    generator = torch.Generator().manual_seed(9)
    noise = functional.normalize(torch.randn(1, 48, *GRID.shape, generator=generator), dim=1)
    matches = match_points(_points(), fixed, Features(FeatureMap(noise, GRID), None))
    assert np.median(matches.cycle_error) > 12.0


def test_stable_matches_return_and_are_distinct() -> None:
    fixed, moving = (FeatureIndex(_position_features(GRID, s)) for s in (np.zeros(3), SHIFT))
    points = np.repeat(_points(), 2, axis=0)
    matches = stable_matches(points, fixed, moving)
    assert 0 < len(matches) <= 60
    assert matches.cycle_error.max() < 4.0
    errors = np.linalg.norm(matches.matched - matches.points - SHIFT, axis=1)
    assert np.median(errors) < 1.0


def test_features_of_different_extractors_do_not_match() -> None:
    first, second = _position_features(GRID, SHIFT), _position_features(GRID, SHIFT, channels=32)
    with pytest.raises(ValueError, match="48 and of 32 channels"):
        match_points(_points(), first, second)


def test_no_points_give_no_matches() -> None:
    features = _position_features(GRID, SHIFT)
    assert len(match_points(np.empty((0, 3)), features, features)) == 0
