"""Linear alignment: closed forms, outliers, known displacements of made-up bodies, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from SAMRegistrationLib.alignment import Alignment, align, improved_on_same_body
from SAMRegistrationLib.alignment.align import confirms
from SAMRegistrationLib.alignment.checks import doubts
from SAMRegistrationLib.alignment.intensity_alignment import IntensityAligner
from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import fit_transform, plausible, robust_fit
from SAMRegistrationLib.alignment.search import search_translations
from SAMRegistrationLib.alignment.volumes import CoarseVolume, PreparedImage
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.matching import Matches
from SAMRegistrationLib.methods import align as stage
from SAMRegistrationLib.methods.problem import Problem
from SAMRegistrationLib.methods.sam_affine import (
    aligned_volume,
    quarter_turn,
    sam_affine,
    turn_degrees,
    turned_grid,
)
from SAMRegistrationLib.methods.sam_coarse import SparseDisplacement, interpolated_field, optimized_field
from SAMRegistrationLib.transforms import AffineTransform


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.deg2rad(degrees).tolist())
    return np.reshape(transform.GetMatrix(), (3, 3))


def _cloud(count: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-100, 100, (count, 3))


angles = st.floats(-170, 170)
offsets = st.tuples(*[st.floats(-300, 300)] * 3)


@settings(max_examples=30, deadline=None)
@given(degrees=st.tuples(angles, angles, angles), offset=offsets, stretch=st.floats(0.7, 1.4))
def test_exact_correspondences_give_back_any_similarity(
    degrees: tuple[float, float, float], offset: tuple[float, float, float], stretch: float
) -> None:
    truth = AffineTransform.about_center(stretch * _rotation(degrees), (10, 20, 30), offset)
    points = _cloud(20)
    for model in (Model.SIMILARITY, Model.AFFINE):
        found = fit_transform(points, truth.transform_points(points), None, model)
        np.testing.assert_allclose(found.matrix, truth.matrix, atol=1e-6)


def test_a_rigid_fit_agrees_with_itk_and_is_never_a_reflection() -> None:
    points = _cloud(30)
    mirrored = points * (-1, 1, 1)
    found = fit_transform(points, mirrored, None, Model.RIGID)
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(1)
    moved = AffineTransform.about_center(_rotation((10, -20, 30)), (0, 0, 0), (5, 6, 7)).transform_points(points)
    noisy = moved + np.random.default_rng(1).normal(0, 3, moved.shape)
    reference = sitk.LandmarkBasedTransformInitializer(
        sitk.VersorRigid3DTransform(), points.ravel().tolist(), noisy.ravel().tolist()
    )
    ours = fit_transform(points, noisy, None, Model.RIGID).transform_points(points)
    theirs = np.array([reference.TransformPoint(p) for p in points.tolist()])
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0.0, 0.55), seed=st.integers(0, 100))
def test_the_robust_fit_withstands_wrong_matches(share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    linear = _rotation((5, -10, 70)) @ np.diag([1.1, 0.95, 1.0])
    truth = AffineTransform.about_center(linear, (0, 0, 0), (40, -80, 120))
    points = _cloud(200, seed)
    matched = truth.transform_points(points) + generator.normal(0, 2, points.shape)
    wrong = generator.random(200) < share
    matched[wrong] = generator.uniform(-300, 300, (int(wrong.sum()), 3))
    fit = robust_fit(points, matched, np.ones(200), hypotheses=1000)
    assert fit.model is Model.AFFINE
    errors = np.linalg.norm(fit.transform.transform_points(points) - truth.transform_points(points), axis=1)
    assert errors.max() < 4.0


def test_the_robust_fit_is_repeatable() -> None:
    points = _cloud()
    matched = points + np.random.default_rng(5).normal(0, 10, points.shape)
    first, second = (robust_fit(points, matched, np.ones(200), seed=4, hypotheses=500) for _ in range(2))
    np.testing.assert_array_equal(first.transform.matrix, second.transform.matrix)


def test_points_in_a_plane_do_not_support_an_affine_map() -> None:
    points = _cloud() * (1, 1, 0.01)
    moved = points + np.array([3, 4, 5])
    fit = robust_fit(points, moved, np.ones(200), hypotheses=500)
    assert fit.model is Model.SIMILARITY
    np.testing.assert_allclose(fit.transform.transform_points(points), moved, atol=1e-6)


def test_few_points_support_only_a_rigid_map() -> None:
    points = _cloud(8)
    assert robust_fit(points, points + 5, np.ones(8), hypotheses=200).model is Model.RIGID


def test_matches_that_do_not_agree_are_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="only 4 points"):
        robust_fit(_cloud(4), _cloud(4), np.ones(4))
    with pytest.raises(InputError, match="agree"):
        points = generator.uniform(-1000, 1000, (12, 3))
        robust_fit(points, generator.uniform(-1000, 1000, (12, 3)), np.ones(12), hypotheses=300)


def test_reflections_and_extreme_stretches_are_implausible() -> None:
    assert plausible(AffineTransform.about_center(1.2 * _rotation((0, 0, 90)), (0, 0, 0)))
    for scales in ((-1, 1, 1), (1.7, 1.7, 1.7), (1.3, 1, 0.7)):
        assert not plausible(AffineTransform(np.diag([*scales, 1.0])))


def _phantom(grid: Grid, to_body: AffineTransform, contrast: bool = False) -> Image:
    """A head-like body with bones and cavities at asymmetric places, as seen on a grid."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    px, py, pz = np.moveaxis(to_body.transform_points(grid.to_world(np.stack([x, y, z], -1))), -1, 0)
    values = np.full(grid.shape, -1000.0)
    inside = (px / 70) ** 2 + (py / 55) ** 2 + ((pz - 10) / 90) ** 2 < 1
    values[inside] = 40.0
    blobs = [
        ((25, 10, 30), 18, 500.0),
        ((-30, -15, -20), 15, 700.0),
        ((0, 30, -45), 12, 600.0),
        ((-15, 15, 45), 16, -900.0),
        ((20, -25, -5), 14, -850.0),
    ]
    for center, radius, value in blobs:
        distance = np.sqrt((px - center[0]) ** 2 + (py - center[1]) ** 2 + (pz - center[2]) ** 2)
        values[(distance < radius) & inside] = value
    if contrast:
        values = np.select([~inside, values > 300, values > 0], [0.0, 60.0, 300.0], 150.0)
    return Image(torch.from_numpy(values).float(), grid, "int16", "MR" if contrast else "CT")


def _grid(center: tuple[float, float, float] = (0, 0, 0), size: tuple[int, int, int] = (44, 36, 54)) -> Grid:
    spacing = 5.0
    origin = [c - (n - 1) / 2 * spacing for c, n in zip(center, size, strict=True)]
    return Grid(size, (spacing,) * 3, tuple(origin))


def _body_error(found: AffineTransform, truth: AffineTransform) -> float:
    points = np.random.default_rng(2).uniform((-50, -40, -60), (50, 40, 70), (100, 3))
    return float(np.linalg.norm(found.transform_points(points) - truth.transform_points(points), axis=1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("contrast", [False, True])
def test_intensities_find_a_far_and_turned_volume_of_the_same_or_another_contrast(contrast: bool) -> None:
    truth = AffineTransform.about_center(_rotation((8, -6, 15)), (0, 0, 0), (400, -300, 900))
    fixed = _phantom(_grid(), AffineTransform())
    moving = _phantom(_grid((400, -300, 900)), truth.inverse(), contrast)
    found = align(fixed, moving, model="rigid")
    assert found.method == "intensities"
    assert found.model == "rigid"
    assert _body_error(found.transform, truth) < 3.0


@pytest.mark.slow
def test_intensities_find_half_a_body_and_the_storage_does_not_matter() -> None:
    truth = AffineTransform.translation((30, -20, 140))
    fixed = _phantom(_grid(), AffineTransform())
    moving = _phantom(_grid((30, -20, 190), (44, 36, 27)), truth.inverse())
    found = align(fixed, moving, model="rigid")
    assert _body_error(found.transform, truth) < 5.0
    grid = moving.grid
    last = grid.to_world((0, 0, grid.size[2] - 1))
    stored = Image(
        moving.data.flip(0).transpose(1, 2).contiguous(),
        Grid(
            (grid.size[1], grid.size[0], grid.size[2]),
            grid.spacing,
            tuple(last),
            (0, 1, 0, 1, 0, 0, 0, 0, -1),
        ),
        "int16",
        "CT",
    )
    again = align(fixed, stored, model="rigid")
    assert _body_error(again.transform, found.transform) < 0.1


def test_an_initial_map_is_improved() -> None:
    truth = AffineTransform.translation((12, -9, 6))
    fixed, moving = _phantom(_grid(), AffineTransform()), _phantom(_grid(), truth.inverse())
    found = align(fixed, moving, model="translation", initial=AffineTransform.translation((4, 0, 0)))
    assert _body_error(found.transform, truth) < 1.5


def test_intensities_improve_a_map_by_features_where_both_volumes_show_one_body_only() -> None:
    truth = AffineTransform.translation((9, -6, 7))
    fixed, moving = _phantom(_grid(), AffineTransform()), _phantom(_grid(), truth.inverse())
    found = Alignment(AffineTransform.translation((3, -1, 1)), "rigid", 60, 0.95, "features", [], True)
    better = improved_on_same_body(found, fixed, moving)
    assert _body_error(better.transform, truth) < 1.5 and better.method == "features"
    for other in (replace(found, score=0.8), replace(found, method="intensities")):
        assert improved_on_same_body(other, fixed, moving) is other
    apart = _phantom(_grid(), AffineTransform.translation((0, 0, 60)), contrast=True)
    assert improved_on_same_body(found, fixed, apart) is found, "what was said to look alike does not"


@pytest.mark.parametrize(("score", "looks"), [(0.95, 0), (0.7, 1)])
def test_only_people_are_looked_at_twice(score: float, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one body intensities say more exactly what another embedding would."""
    truth = AffineTransform.translation((9, -6, 7))
    fixed, moving = _phantom(_grid(), AffineTransform()), _phantom(_grid(), truth.inverse())
    first = Alignment(AffineTransform.translation((3, -1, 1)), "rigid", 60, score, "features", [], True)
    looked_at: list[Alignment] = []

    def look_again(*_: object, **__: object) -> Alignment:
        looked_at.append(first)
        return first

    monkeypatch.setattr(stage, "sam_affine", lambda *_, **__: first)
    monkeypatch.setattr(stage, "look_again", look_again)
    problem = Problem(fixed, moving, MindExtractor())
    monkeypatch.setattr(problem.extractor, "name", "embeddings")
    stage.align_stage(problem, None, model="rigid")
    assert len(looked_at) == looks
    assert (problem.initial is first.transform) == (looks == 1)


def test_every_translation_is_searched() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(14, 12, 10, generator=generator)
    everywhere = torch.ones_like(volume, dtype=torch.bool)

    def coarse(part: torch.Tensor, first: tuple[int, int, int]) -> CoarseVolume:
        known = everywhere[: part.shape[0], : part.shape[1], : part.shape[2]]
        grid = Grid(tuple(part.shape[::-1]), (8.0, 8.0, 8.0), tuple(8.0 * i for i in first))
        return CoarseVolume(part, known, known, known, grid, True)

    fixed = coarse(volume, (0, 0, 0))
    moving = coarse(volume[6:, :8, 2:], (100, 50, -70))
    best = search_translations(fixed, moving, [np.eye(3)])[0]
    # Voxel (2, 0, 6) of the fixed volume is the first one of the moving volume.
    np.testing.assert_allclose(best.transform.transform_points((16.0, 0.0, 48.0)), (800, 400, -560), atol=1e-6)
    assert best.overlap == pytest.approx(1)
    assert best.score == pytest.approx(1, abs=1e-3)


def _embeddings(grid: Grid, to_body: AffineTransform) -> Features:
    """Features that are a smooth function of where in the body a voxel is."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    body = torch.from_numpy(to_body.transform_points(grid.to_world(np.stack([x, y, z], -1))))
    frequencies = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 40
    phase = body @ frequencies.T
    vectors = torch.cat([phase.cos(), phase.sin()], dim=-1).permute(3, 0, 1, 2)[None].float()
    unit = FeatureMap(functional.normalize(vectors, dim=1), grid)
    return Features(unit, unit)


def test_embeddings_align_volumes_far_apart_and_turned_by_a_right_angle() -> None:
    linear = _rotation((0, 0, 90)) @ np.diag([1.1, 1.0, 0.95])
    truth = AffineTransform.about_center(linear, (0, 0, 0), (500, 0, -700))
    grids = _grid(), _grid((500, 0, -700), (40, 46, 54))
    fixed, moving = _phantom(grids[0], AffineTransform()), _phantom(grids[1], truth.inverse())
    features = _embeddings(grids[0], AffineTransform()), _embeddings(grids[1], truth.inverse())
    found = align(fixed, moving, *features)
    assert found.method == "features"
    assert found.model == "affine"
    assert found.inliers is not None
    assert found.inliers > 100
    assert _body_error(found.transform, truth) < 2.0
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
            return _embeddings(image.grid, AffineTransform() if self.asked == 1 else self.off)
        noise = torch.randn(1, 32, *image.grid.shape, generator=torch.Generator().manual_seed(3))
        unit = FeatureMap(functional.normalize(noise, dim=1), image.grid)
        return Features(unit, unit)


@pytest.mark.slow
def test_a_patient_turned_too_far_for_embeddings_is_turned_back_and_matched_again() -> None:
    truth = AffineTransform.about_center(_rotation((0, 0, 90)), (0, 0, 0), (300, 40, -200))
    fixed = _phantom(_grid(), AffineTransform())
    moving = _phantom(_grid((300, 40, -200), (40, 46, 54)), truth.inverse())
    # What embeddings say of the volume that is turned back, 6 mm from what intensities say.
    extractor = UprightEmbeddings(fixed.grid, AffineTransform.translation((6, 0, 0)))
    found = sam_affine(fixed, moving, extractor, model="rigid")  # type: ignore[arg-type]
    assert extractor.asked == 3
    assert found.method == "features"
    shifted = truth.compose(AffineTransform.translation((-6, 0, 0)))
    assert _body_error(found.transform, shifted) < 3.0


def test_matches_confirm_what_intensities_found_if_enough_of_them_agree() -> None:
    truth = AffineTransform.about_center(_rotation((3, -5, 8)), (0, 0, 0), (20, 5, -30))
    points, wrong = _cloud(120, 1), _cloud(120, 2) * 3
    matched = np.where(np.arange(120)[:, None] < 50, truth.transform_points(points), wrong)
    matches = Matches(points, matched, np.ones(120), np.zeros(120))
    elsewhere = AffineTransform.translation((0, 0, 80)).compose(truth)
    assert confirms(matches, truth)
    assert not confirms(matches, elsewhere)
    assert not confirms(matches.select(np.arange(20, 120)), truth)


def test_quarter_turns_are_exact_and_four_of_them_change_nothing() -> None:
    grid = _grid((10, -20, 30), (40, 46, 54))
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
            return _embeddings(image.grid, AffineTransform())
        as_stored = AffineTransform(self.moving.voxel_to_world @ image.grid.world_to_voxel)
        to_body = self.moving_to_body.compose(as_stored)
        if image.grid.size == self.moving.size and turn_degrees(to_body) < 45:
            return _embeddings(image.grid, to_body)
        noise = torch.randn(1, 32, *image.grid.shape, generator=torch.Generator().manual_seed(3))
        unit = FeatureMap(functional.normalize(noise, dim=1), image.grid)
        return Features(unit, unit)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_patient_whom_nothing_recognizes_is_tried_turned_by_quarters(degrees: float) -> None:
    truth = AffineTransform.about_center(_rotation((0, 0, degrees + 8)), (0, 0, 0), (300, 40, -200))
    grids = _grid(), _grid((300, 40, -200), (40, 46, 54))
    z, y, x = np.meshgrid(*[np.arange(n) for n in grids[0].shape], indexing="ij")
    offsets = grids[0].to_world(np.stack([x, y, z], -1)) - grids[0].center
    # A ball looks the same from all sides.
    ball = torch.from_numpy(np.where(np.linalg.norm(offsets, axis=-1) < 70, 40.0, -1000.0)).float()
    fixed = Image(ball, grids[0], modality="CT")
    moving = aligned_volume(fixed, truth.inverse(), grids[1])
    extractor = EmbeddingsOfTheUpright(fixed, grids[1], truth.inverse())
    found = sam_affine(fixed, moving, extractor, model="rigid")  # type: ignore[arg-type]
    assert found.reliable
    assert _body_error(found.transform, truth) < 3.0


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


def test_an_unknown_model_is_refused() -> None:
    image = _phantom(_grid(), AffineTransform())
    with pytest.raises(ValueError, match="perspective"):
        align(image, image, model="perspective")


def test_doubts_are_told_and_volumes_without_overlap_are_refused() -> None:
    grid = _grid()
    prepared = [PreparedImage.of(_phantom(grid, AffineTransform())) for _ in range(2)]
    aligner = IntensityAligner(*prepared)
    assert doubts(aligner.judged(AffineTransform()), aligner, None) == []
    stretched = aligner.judged(AffineTransform.about_center(np.diag([1.3, 1, 1]), (0, 0, 0)))
    assert any("stretches" in sentence for sentence in doubts(stretched, aligner, None))
    shifted = aligner.judged(AffineTransform.translation((70, 40, 60)))
    assert any("little alike" in sentence for sentence in doubts(shifted, aligner, None))
    with pytest.raises(InputError, match="overlap"):
        doubts(aligner.judged(AffineTransform.translation((900, 0, 0))), aligner, None)
