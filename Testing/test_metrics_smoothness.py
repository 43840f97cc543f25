"""Smoothness and folding of fields against float64 references and closed forms."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SAMRegistrationLib.metrics import (
    field_quality,
    folded_percent,
    jacobian_determinant,
    non_diffeomorphic_volume,
    sdlogj,
    sdlogj_learn2reg,
)

SHAPE = (13, 11, 12)


def random_field(seed: int, amplitude: float, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(3)])
    return torch.from_numpy(noise / noise.std() * amplitude)[None]


def linear_field(matrix: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    z, y, x = np.indices(shape).astype(float)
    positions = np.stack([x, y, z])
    return torch.from_numpy(np.tensordot(matrix - np.eye(3), positions, axes=1))[None]


def reference_determinant(displacement: torch.Tensor) -> np.ndarray:
    """Learn2Reg's determinant: central kernel by correlation with zero padding, then a crop of two voxels."""
    field = displacement[0].double().numpy()
    jacobian = np.zeros((*field.shape[1:], 3, 3))
    for component, axis in product(range(3), range(3)):
        kernel = np.array([-0.5, 0, 0.5]).reshape([3 if 2 - axis == d else 1 for d in range(3)])
        gradient = ndimage.correlate(field[component], kernel, mode="constant", cval=0.0)
        jacobian[..., component, axis] = gradient + (component == axis)
    return np.linalg.det(jacobian)[2:-2, 2:-2, 2:-2]


def reference_inverted_volume(displacement: torch.Tensor) -> np.ndarray:
    """Per voxel, half the negative volume of the tetrahedra charged to it, from their transformed vertices."""
    field = displacement[0].double().numpy()
    depth, height, width = field.shape[1:]
    corners = [[(sx, 0, 0), (0, sy, 0), (0, 0, sz)] for sx, sy, sz in product((1, -1), repeat=3)]
    inner = [[(s, s, 0), (s, 0, s), (0, s, s)] for s in (1, -1)]

    def transformed(x: int, y: int, z: int) -> np.ndarray:
        return np.array([x, y, z]) + field[:, z, y, x]

    volumes = np.zeros((depth - 2, height - 2, width - 2))
    for z, y, x in np.ndindex(*volumes.shape):
        origin = np.array([x + 1, y + 1, z + 1])
        for edges in corners + inner:
            original = np.linalg.det(np.array(edges, dtype=float))
            vectors = np.array([transformed(*(origin + edge)) - transformed(*origin) for edge in edges])
            signed = np.linalg.det(vectors) * np.sign(original) / 6
            volumes[z, y, x] += max(0.0, -signed) / 2
    return volumes


@pytest.mark.parametrize("amplitude", [0.1, 0.5, 2.0])
def test_smoothness_follows_the_learn2reg_definition_with_and_without_the_shift(amplitude: float) -> None:
    field = random_field(1, amplitude)
    expected = reference_determinant(field)
    assert jacobian_determinant(field).numpy() == pytest.approx(expected, abs=1e-9)
    assert sdlogj_learn2reg(field) == pytest.approx(np.log(np.clip(expected + 3, 1e-9, 1e9)).std())
    assert sdlogj(field) == pytest.approx(np.log(np.clip(expected, 1e-9, 1e9)).std())
    assert folded_percent(field) == pytest.approx(100 * np.mean(expected <= 0))


def test_the_smoothness_measures_grow_where_the_field_folds() -> None:
    gentle, wild = field_quality(random_field(2, 0.1)), field_quality(random_field(2, 3.0))
    assert gentle.folded_percent == gentle.ndv_percent == 0
    assert wild.folded_percent > 1
    assert wild.ndv_percent > 1
    assert wild.sdlogj > gentle.sdlogj > gentle.sdlogj_learn2reg > 0


@given(st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9))
@settings(max_examples=20, deadline=None)
def test_an_affine_map_has_its_determinant_everywhere_and_no_spread(entries: list[float]) -> None:
    matrix = np.eye(3) + np.array(entries).reshape(3, 3)
    field = linear_field(matrix)
    determinant = np.linalg.det(matrix)
    assert jacobian_determinant(field).numpy() == pytest.approx(determinant, abs=1e-9)
    assert sdlogj_learn2reg(field) == pytest.approx(0, abs=1e-9)


def test_a_reflection_folds_everything() -> None:
    quality = field_quality(linear_field(np.diag([1.0, -1.0, 1.0])))
    assert quality.folded_percent == pytest.approx(100)
    assert quality.ndv_percent == pytest.approx(100)
    assert quality.largest_determinant == pytest.approx(-1)


@pytest.mark.parametrize("amplitude", [0.8, 2.0])
def test_non_diffeomorphic_volume_is_that_of_the_inverted_tetrahedra(amplitude: float) -> None:
    field = random_field(3, amplitude, (6, 7, 8))
    expected = 100 * reference_inverted_volume(field).mean()
    assert expected > 0
    assert non_diffeomorphic_volume(field) == pytest.approx(expected)


def test_a_checkerboard_fold_hides_from_central_differences_but_not_from_the_volume() -> None:
    x = torch.arange(12.0)
    field = torch.zeros(1, 3, 8, 8, 12)
    field[0, 0] = torch.where(x % 2 == 0, 0.7, -0.7)
    assert folded_percent(field) == 0
    assert non_diffeomorphic_volume(field) > 5


def test_a_mask_restricts_the_measures_to_its_voxels() -> None:
    field = random_field(4, 2.0)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[4:9, 3:8, 3:8] = True
    inside = mask[2:-2, 2:-2, 2:-2].numpy()
    expected = reference_determinant(field)[inside]
    quality = field_quality(field, mask)
    assert quality.sdlogj_learn2reg == pytest.approx(np.log(np.clip(expected + 3, 1e-9, 1e9)).std())
    assert quality.folded_percent == pytest.approx(100 * np.mean(expected <= 0))
    volumes = reference_inverted_volume(field)[mask[1:-1, 1:-1, 1:-1].numpy()]
    assert quality.ndv_percent == pytest.approx(100 * volumes.mean())
    with pytest.raises(ValueError, match="mask is empty"):
        field_quality(field, torch.zeros(SHAPE))


def test_a_field_too_small_to_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        field_quality(torch.zeros(1, 3, 4, 9, 9))


def test_storing_the_volume_with_permuted_axes_changes_nothing() -> None:
    field = random_field(5, 1.5)
    # Swapping the x and z axes swaps the array's dimensions and the components.
    swapped = field.permute(0, 1, 4, 3, 2)[:, [2, 1, 0]]
    first, second = field_quality(field), field_quality(swapped)
    assert vars(first) == pytest.approx(vars(second))
