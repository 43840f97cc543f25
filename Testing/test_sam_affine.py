"""Linear alignment by embeddings, also of patients turned far, and the coarse field that follows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_phantom import body_error, cloud, head_grid, head_phantom, rotation
from known_body import embeddings
from torch.nn import functional

from SAMRegistrationLib.alignment import align
from SAMRegistrationLib.alignment.align import confirms
from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.matching import Matches
from SAMRegistrationLib.methods.sam_affine import (
    aligned_volume,
    quarter_turn,
    sam_affine,
    turn_degrees,
    turned_grid,
)
from SAMRegistrationLib.methods.sam_coarse import SparseDisplacement, interpolated_field, optimized_field
from SAMRegistrationLib.transforms import AffineTransform


def test_embeddings_align_volumes_far_apart_and_turned_by_a_right_angle() -> None:
    linear = rotation((0, 0, 90)) @ np.diag([1.1, 1.0, 0.95])
    truth = AffineTransform.about_center(linear, (0, 0, 0), (500, 0, -700))
    grids = head_grid(), head_grid((500, 0, -700), (40, 46, 54))
    fixed, moving = head_phantom(grids[0], AffineTransform()), head_phantom(grids[1], truth.inverse())
    features = embeddings(grids[0], AffineTransform()), embeddings(grids[1], truth.inverse())
    found = align(fixed, moving, *features)
    assert found.method == "features"
    assert found.model == "affine"
    assert found.inliers is not None
    assert found.inliers > 100
    assert body_error(found.transform, truth) < 2.0
    assert turn_degrees(found.transform) == pytest.approx(90, abs=3)
    aligned = aligned_volume(moving, found.transform, fixed.grid)
    difference = (aligned.data - fixed.data).abs()[fixed.data > -900]
    assert float(difference.median()) < 30


class UprightEmbeddings:
    """Embeddings that tell where in the body a voxel is, but only if the body stands as in the fixed volume."""

    name = "upright"
    spacing = 5.0

    def __init__(self, fixed: Grid, off: AffineTransform) -> None:
        self.fixed, self.off = fixed, off
        self.asked = 0

    def extract(self, image: Image) -> Features:
        self.asked += 1
        if image.grid.isclose(self.fixed):
            return embeddings(image.grid, AffineTransform() if self.asked == 1 else self.off)
        noise = torch.randn(1, 32, *image.grid.shape, generator=torch.Generator().manual_seed(3))
        unit = FeatureMap(functional.normalize(noise, dim=1), image.grid)
        return Features(unit, unit)


@pytest.mark.slow
def test_a_patient_turned_too_far_for_embeddings_is_turned_back_and_matched_again() -> None:
    truth = AffineTransform.about_center(rotation((0, 0, 90)), (0, 0, 0), (300, 40, -200))
    fixed = head_phantom(head_grid(), AffineTransform())
    moving = head_phantom(head_grid((300, 40, -200), (40, 46, 54)), truth.inverse())
    # What embeddings say of the volume that is turned back, 6 mm from what intensities say.
    extractor = UprightEmbeddings(fixed.grid, AffineTransform.translation((6, 0, 0)))
    found = sam_affine(fixed, moving, extractor, model="rigid")  # type: ignore[arg-type]
    assert extractor.asked == 3
    assert found.method == "features"
    shifted = truth.compose(AffineTransform.translation((-6, 0, 0)))
    assert body_error(found.transform, shifted) < 3.0


def test_matches_confirm_what_intensities_found_if_enough_of_them_agree() -> None:
    truth = AffineTransform.about_center(rotation((3, -5, 8)), (0, 0, 0), (20, 5, -30))
    points, wrong = cloud(120, 1), cloud(120, 2) * 3
    matched = np.where(np.arange(120)[:, None] < 50, truth.transform_points(points), wrong)
    matches = Matches(points, matched, np.ones(120), np.zeros(120))
    elsewhere = AffineTransform.translation((0, 0, 80)).compose(truth)
    assert confirms(matches, truth)
    assert not confirms(matches, elsewhere)
    assert not confirms(matches.select(np.arange(20, 120)), truth)


def test_quarter_turns_are_exact_and_four_of_them_change_nothing() -> None:
    grid = head_grid((10, -20, 30), (40, 46, 54))
    turn = quarter_turn(grid, 90)
    np.testing.assert_allclose(turn.transform_points(grid.center), grid.center)
    right, behind = grid.center + np.eye(3)[:2]
    np.testing.assert_allclose(turn.transform_points(right), behind)
    for degrees in (180, 270, 360):
        turn_again = quarter_turn(grid, degrees)
        np.testing.assert_allclose(
            turn_again.matrix, np.linalg.matrix_power(turn.matrix, degrees // 90), atol=1e-9
        )
    turned = turned_grid(grid, turn)
    np.testing.assert_allclose(turned.to_world([3, 4, 5]), turn.transform_points(grid.to_world([3, 4, 5])))


class EmbeddingsOfTheUpright:
    """Embeddings of two volumes that say nothing of a body lying more than 45 degrees from how it should."""

    name = "upright"
    spacing = 5.0

    def __init__(self, fixed: Image, moving: Grid, moving_to_body: AffineTransform) -> None:
        self.fixed = fixed
        self.moving = moving
        self.moving_to_body = moving_to_body

    def extract(self, image: Image) -> Features:
        if image is self.fixed:
            return embeddings(image.grid, AffineTransform())
        as_stored = AffineTransform(self.moving.voxel_to_world @ image.grid.world_to_voxel)
        to_body = self.moving_to_body.compose(as_stored)
        if image.grid.size == self.moving.size and turn_degrees(to_body) < 45:
            return embeddings(image.grid, to_body)
        noise = torch.randn(1, 32, *image.grid.shape, generator=torch.Generator().manual_seed(3))
        unit = FeatureMap(functional.normalize(noise, dim=1), image.grid)
        return Features(unit, unit)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_patient_whom_nothing_recognizes_is_tried_turned_by_quarters(degrees: float) -> None:
    truth = AffineTransform.about_center(rotation((0, 0, degrees + 8)), (0, 0, 0), (300, 40, -200))
    grids = head_grid(), head_grid((300, 40, -200), (40, 46, 54))
    z, y, x = np.meshgrid(*[np.arange(n) for n in grids[0].shape], indexing="ij")
    offsets = grids[0].to_world(np.stack([x, y, z], -1)) - grids[0].center
    # A ball looks the same from all sides.
    ball = torch.from_numpy(np.where(np.linalg.norm(offsets, axis=-1) < 70, 40.0, -1000.0)).float()
    fixed = Image(ball, grids[0], modality="CT")
    moving = aligned_volume(fixed, truth.inverse(), grids[1])
    extractor = EmbeddingsOfTheUpright(fixed, grids[1], truth.inverse())
    found = sam_affine(fixed, moving, extractor, model="rigid")  # type: ignore[arg-type]
    assert found.reliable
    assert body_error(found.transform, truth) < 3.0


def test_the_optimized_coarse_field_passes_through_a_smooth_displacement() -> None:
    shape = (48, 40, 32)
    generator = np.random.default_rng(0)
    position = generator.uniform(0, 30, (800, 3))
    wanted = np.stack([2 + 0.05 * position[:, 0], -1 + 0 * position[:, 1], 0.08 * position[:, 2]], axis=1)
    matches = SparseDisplacement(
        torch.from_numpy(position).float(), torch.from_numpy(wanted).float(), torch.ones(800)
    )
    field = optimized_field(matches, shape, reduction=8, iterations=300, diffusion=0.001)
    assert field.shape == (1, 3, 6, 5, 4)
    middle = field[0, :, 1:3, 1:3, 1:3].mean(dim=(1, 2, 3)) * 8
    center = torch.tensor([2 + 0.05 * 15.5, -1.0, 0.08 * 15.5])
    torch.testing.assert_close(middle, center, atol=0.4, rtol=0)


def test_the_interpolated_coarse_field_keeps_a_common_shift_everywhere() -> None:
    position = torch.tensor([[4.0, 5, 6], [20, 10, 8], [9, 25, 30]])
    shift = torch.tensor([[3.0, -2, 5]]).expand(3, 3)
    field = interpolated_field(SparseDisplacement(position, shift, torch.ones(3)), (48, 40, 32))
    expected = torch.tensor([3.0, -2, 5]).view(1, 3, 1, 1, 1) / 4
    torch.testing.assert_close(field, expected.expand_as(field), atol=1e-4, rtol=0)
