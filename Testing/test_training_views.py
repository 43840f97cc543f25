"""Views and their changes: positions ride along exactly, left stays left, cut-away places are not asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRegistrationLib.training.cache import AIR
from SAMRegistrationLib.training.config import PhotometricConfig, ViewConfig
from SAMRegistrationLib.training.photometric import PhotometricAugmentation
from SAMRegistrationLib.training.views import (
    Placement,
    Source,
    cut_view,
    draw_placements,
    locate,
    rotation_matrix,
    sample_map,
)

SHAPE = (32, 32, 48)
SIZE = (60, 70, 80)
GRADIENT = (3.0, -2.0, 1.5)
CONFIG = ViewConfig(shape=SHAPE, offset=5.0, far_probability=0.0, elastic=5.0, elastic_grid=(3, 3, 4))


def source_of(volume: torch.Tensor) -> Source:
    codes = torch.ones(volume.shape, dtype=torch.uint8)
    codes[..., 40:, :] = 2
    return Source(volume, codes, 2.0)


@pytest.fixture(scope="module")
def linear() -> Source:
    """HU that grow linearly with the position in mm, so that linear sampling is exact."""
    z, y, x = torch.meshgrid(*[torch.arange(size) * 2.0 for size in SIZE], indexing="ij")
    return source_of((GRADIENT[0] * x + GRADIENT[1] * y + GRADIENT[2] * z - 100)[None, None])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_view_voxel_shows_what_is_at_its_position(linear, seed):
    for placement in draw_placements(linear, CONFIG, torch.Generator().manual_seed(seed)):
        view = cut_view(linear, placement, SHAPE)
        assert view.mesh.shape == (3, 16, 16, 24)
        expected = sum(slope * view.mesh[axis] for axis, slope in enumerate(GRADIENT)) - 100
        means = torch.nn.functional.avg_pool3d(view.image, 2)[0, 0]
        limit = torch.tensor(SIZE[::-1])[:, None, None, None] * 2.0 - 12
        inside = ((view.mesh > 10) & (view.mesh < limit)).all(dim=0)
        torch.testing.assert_close(means[inside], expected[inside], atol=0.05, rtol=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_locating_a_fine_voxels_position_returns_the_voxel(linear, seed):
    generator = torch.Generator().manual_seed(seed)
    view = cut_view(linear, draw_placements(linear, CONFIG, generator)[1], SHAPE)
    voxels = torch.rand((50, 3), generator=generator) * torch.tensor([23.0, 15.0, 15.0])
    found, valid = locate(view, sample_map(view.mesh, voxels))
    assert float(valid.float().mean()) > 0.9
    torch.testing.assert_close(found[valid], voxels[valid], atol=0.2, rtol=0)


def test_points_outside_a_view_are_not_located(linear):
    view = cut_view(linear, draw_placements(linear, CONFIG, torch.Generator().manual_seed(1))[0], SHAPE)
    far = view.mesh.flatten(1).T[:5] + 500.0
    assert not locate(view, far)[1].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_no_view_exchanges_left_and_right_or_leaves_the_allowed_rotations(linear, seed):
    config = ViewConfig(shape=SHAPE, quarter_turn_probability=0.5)
    for placement in draw_placements(linear, config, torch.Generator().manual_seed(seed)):
        matrix = placement.matrix.double()
        scale = torch.linalg.det(matrix) ** (1 / 3)
        assert float(scale) > 0
        torch.testing.assert_close(matrix @ matrix.T / scale**2, torch.eye(3).double(), atol=1e-5, rtol=0)
        tilt = torch.rad2deg(torch.arccos((matrix[2, 2] / scale).clamp(-1, 1)))
        assert float(tilt) <= 2**0.5 * config.largest_angle + 1e-3


def test_rotations_agree_with_scipy():
    transform = pytest.importorskip("scipy.spatial.transform")
    angles = [0.3, -0.2, 0.9]
    expected = transform.Rotation.from_euler("xyz", angles).as_matrix()
    np.testing.assert_allclose(rotation_matrix(torch.tensor(angles)).numpy(), expected, atol=1e-6)


def test_a_straight_view_is_a_crop():
    torch.manual_seed(0)
    source = source_of(torch.randint(-1000, 1000, (1, 1, *SIZE), dtype=torch.int16))
    center = torch.tensor([40.0, 30.0, 25.0]) * 2 - 1.0
    straight = Placement(center, torch.eye(3) * 2.0, torch.zeros(1, 3, 2, 2, 2))
    view = cut_view(source, straight, (16, 16, 16))
    torch.testing.assert_close(view.image, source.image[..., 17:33, 22:38, 32:48].float(), atol=0.05, rtol=1e-4)


def test_outside_the_volume_is_air_that_does_not_count(linear):
    far = Placement(torch.full((3,), -500.0), torch.eye(3) * 2.0, torch.zeros(1, 3, 2, 2, 2))
    view = cut_view(linear, far, (16, 16, 16))
    assert bool((view.image == AIR).all())
    assert not view.visible.any()


EVERYTHING = PhotometricConfig(
    *[1.0 if name.endswith("probability") else value for name, value in vars(PhotometricConfig()).items()]
)
NOTHING = PhotometricConfig(
    *[0.0 if name.endswith("probability") else value for name, value in vars(PhotometricConfig()).items()]
)


def augment(seed: int, config: PhotometricConfig = EVERYTHING) -> tuple[torch.Tensor, torch.Tensor]:
    body = torch.full((1, 1, 32, 32, 32), float(AIR))
    body[..., 6:26, 6:26, 6:26] = 40.0
    return PhotometricAugmentation(config, torch.Generator().manual_seed(seed))(body)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_changed_views_stay_in_range_and_show_nothing_where_they_are_cut(seed):
    image, kept = augment(seed)
    assert image.shape == (1, 1, 32, 32, 32)
    assert bool(image.isfinite().all())
    assert float(image.min()) >= AIR and float(image.max()) <= 3071
    assert len(image[0, 0][~kept].unique()) <= 1


def test_the_same_seed_changes_a_view_in_the_same_way():
    assert torch.equal(augment(3)[0], augment(3)[0])
    assert not torch.equal(augment(3)[0], augment(4)[0])


def test_without_changes_a_view_stays_what_it_is():
    image, kept = augment(0, NOTHING)
    assert bool(kept.all())
    assert sorted(image.unique().tolist()) == [AIR, 40.0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.2, 0.9))
def test_a_view_cut_to_a_slab_keeps_whole_slices_that_follow_each_other(seed: int, share: float) -> None:
    _, kept = augment(seed, replace(NOTHING, slab_probability=1.0, slab_share=(share, share)))
    heights = kept.flatten(1).all(dim=1)
    assert torch.equal(heights, kept.flatten(1).any(dim=1))
    shown = torch.nonzero(heights)[:, 0]
    assert abs(len(shown) - 32 * share) <= 1
    assert int(shown[-1] - shown[0]) == len(shown) - 1
