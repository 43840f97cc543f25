"""Landmark errors and the cubic spline that reads the field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.metrics import cubic_sample, point_distances, relative_error, target_registration_error


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=30, deadline=None)
def test_cubic_sampling_is_that_of_scipy_everywhere_in_the_volume(shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=(2, *shape))
    points = rng.uniform(0, 1, (40, 3)) * (np.asarray(shape[::-1]) - 1)
    points[:2] = (0, 0, 0), np.asarray(shape[::-1]) - 1
    expected = np.stack([map_coordinates(channel, points[:, ::-1].T, order=3) for channel in volume], axis=-1)
    assert cubic_sample(volume, points) == pytest.approx(expected, abs=1e-10)


def test_cubic_sampling_passes_through_the_voxels() -> None:
    volume = np.random.default_rng(0).normal(size=(1, 4, 5, 6))
    z, y, x = np.indices(volume.shape[1:]).reshape(3, -1)
    values = cubic_sample(volume, np.stack([x, y, z], axis=-1))
    assert values[:, 0] == pytest.approx(volume[0].ravel(), abs=1e-12)


def test_cubic_sampling_is_as_given_outside_and_constant_along_a_single_voxel() -> None:
    volume = np.full((1, 1, 4, 4), 2.0)
    assert cubic_sample(volume, [[1.5, 1.5, 0.0], [-0.1, 1.0, 0.0]], outside=-7) == pytest.approx(
        np.array([[2.0], [-7.0]])
    )


def test_landmark_error_follows_the_learn2reg_definition() -> None:
    rng = np.random.default_rng(5)
    shape, spacing = (10, 12, 14), np.array([1.5, 2.0, 2.5])
    displacement = rng.normal(size=(3, *shape))
    fixed, moving = rng.uniform(0, 9, (20, 3)), rng.uniform(0, 9, (20, 3))
    read = np.stack([map_coordinates(c, fixed[:, ::-1].T) for c in displacement], axis=-1)
    expected = np.linalg.norm((fixed + read - moving) * spacing, axis=1)
    errors = target_registration_error(displacement, fixed, moving, spacing)
    assert errors == pytest.approx(expected)


def test_a_constant_shift_leaves_exactly_the_rest_of_the_distance() -> None:
    displacement = np.zeros((3, 8, 8, 8))
    displacement[0] = 2
    errors = target_registration_error(displacement, [[3, 3, 3]], [[6, 3, 3]], (0.5, 1, 1))
    assert errors == pytest.approx([0.5])


def test_relative_error_is_the_share_of_the_diagonal() -> None:
    grid = Grid((30, 40, 1), (1.0, 1.0, 1e-9))
    assert relative_error([5.0], grid) == pytest.approx([0.1])
    assert point_distances([[0, 0, 0]], [[3, 4, 0]]) == pytest.approx([5.0])
