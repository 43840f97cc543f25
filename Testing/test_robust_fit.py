"""Fits to correspondences: closed forms, outliers, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from head_phantom import cloud, rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import fit_transform, plausible, robust_fit
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.transforms import AffineTransform

angles = st.floats(-170, 170)
offsets = st.tuples(*[st.floats(-300, 300)] * 3)


@settings(max_examples=30, deadline=None)
@given(degrees=st.tuples(angles, angles, angles), offset=offsets, stretch=st.floats(0.7, 1.4))
def test_exact_correspondences_give_back_any_similarity(
    degrees: tuple[float, float, float], offset: tuple[float, float, float], stretch: float
) -> None:
    truth = AffineTransform.about_center(stretch * rotation(degrees), (10, 20, 30), offset)
    points = cloud(20)
    for model in (Model.SIMILARITY, Model.AFFINE):
        found = fit_transform(points, truth.transform_points(points), None, model)
        np.testing.assert_allclose(found.matrix, truth.matrix, atol=1e-6)


def test_a_rigid_fit_agrees_with_itk_and_is_never_a_reflection() -> None:
    points = cloud(30)
    mirrored = points * (-1, 1, 1)
    found = fit_transform(points, mirrored, None, Model.RIGID)
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(1)
    moved = AffineTransform.about_center(rotation((10, -20, 30)), (0, 0, 0), (5, 6, 7)).transform_points(points)
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
    linear = rotation((5, -10, 70)) @ np.diag([1.1, 0.95, 1.0])
    truth = AffineTransform.about_center(linear, (0, 0, 0), (40, -80, 120))
    points = cloud(200, seed)
    matched = truth.transform_points(points) + generator.normal(0, 2, points.shape)
    wrong = generator.random(200) < share
    matched[wrong] = generator.uniform(-300, 300, (int(wrong.sum()), 3))
    fit = robust_fit(points, matched, np.ones(200), hypotheses=1000)
    assert fit.model is Model.AFFINE
    errors = np.linalg.norm(fit.transform.transform_points(points) - truth.transform_points(points), axis=1)
    assert errors.max() < 4.0


def test_the_robust_fit_is_repeatable() -> None:
    points = cloud()
    matched = points + np.random.default_rng(5).normal(0, 10, points.shape)
    first, second = (robust_fit(points, matched, np.ones(200), seed=4, hypotheses=500) for _ in range(2))
    np.testing.assert_array_equal(first.transform.matrix, second.transform.matrix)


def test_points_in_a_plane_do_not_support_an_affine_map() -> None:
    points = cloud() * (1, 1, 0.01)
    moved = points + np.array([3, 4, 5])
    fit = robust_fit(points, moved, np.ones(200), hypotheses=500)
    assert fit.model is Model.SIMILARITY
    np.testing.assert_allclose(fit.transform.transform_points(points), moved, atol=1e-6)


def test_few_points_support_only_a_rigid_map() -> None:
    points = cloud(8)
    assert robust_fit(points, points + 5, np.ones(8), hypotheses=200).model is Model.RIGID


def test_matches_that_do_not_agree_are_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="only 4 points"):
        robust_fit(cloud(4), cloud(4), np.ones(4))
    with pytest.raises(InputError, match="agree"):
        points = generator.uniform(-1000, 1000, (12, 3))
        robust_fit(points, generator.uniform(-1000, 1000, (12, 3)), np.ones(12), hypotheses=300)


def test_reflections_and_extreme_stretches_are_implausible() -> None:
    assert plausible(AffineTransform.about_center(1.2 * rotation((0, 0, 90)), (0, 0, 0)))
    for scales in ((-1, 1, 1), (1.7, 1.7, 1.7), (1.3, 1, 0.7)):
        assert not plausible(AffineTransform(np.diag([*scales, 1.0])))
