"""Affine, composite and foreign transforms against SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from strategies import empty_sitk, grids, points_inside, rotation, seeds, smooth_field

from SAMRegistrationLib import AffineTransform, CompositeTransform, Grid
from SAMRegistrationLib.transforms import ItkTransform, Transform, transform_points

quick = settings(max_examples=25, deadline=None)


def random_affine(seed: int) -> AffineTransform:
    random = np.random.default_rng(seed)
    linear = rotation(random.uniform(-3, 3, 3)) @ np.diag(random.uniform(0.5, 2, 3))
    return AffineTransform.about_center(linear, random.uniform(-100, 100, 3), random.uniform(-50, 50, 3))


def random_points(seed: int, count: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-300, 300, (count, 3))


def spline(grid: Grid, seed: int) -> ItkTransform:
    transform = sitk.BSplineTransformInitializer(empty_sitk(grid), (3, 3, 3))
    transform.SetParameters(tuple(np.random.default_rng(seed).uniform(-5, 5, len(transform.GetParameters()))))
    return ItkTransform(transform)


def mapped_by_sitk(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


@quick
@given(seeds)
def test_affine_maps_agree_with_simpleitk(seed: int) -> None:
    affine, points = random_affine(seed), random_points(seed)
    expected = mapped_by_sitk(affine.to_sitk(), points)
    np.testing.assert_allclose(affine.transform_points(points), expected, atol=1e-9)
    np.testing.assert_allclose(transform_points(affine, points), expected, atol=1e-9)
    single = affine.map_world(torch.from_numpy(points.T.copy()).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.T, expected, atol=1e-3)


@quick
@given(seeds, seeds)
def test_affine_maps_compose_and_invert_as_maps_do(seed: int, other: int) -> None:
    first, second, points = random_affine(seed), random_affine(other), random_points(seed)
    composed = second.compose(first).transform_points(points)
    np.testing.assert_allclose(composed, second.transform_points(first.transform_points(points)), atol=1e-9)
    np.testing.assert_allclose(first.inverse().transform_points(first.transform_points(points)), points, atol=1e-9)


def test_a_linear_map_about_a_center_leaves_the_center_in_place() -> None:
    affine = AffineTransform.about_center(rotation((0.3, 0.4, 0.5)) * 2, (10, 20, 30), offset=(1, 2, 3))
    np.testing.assert_allclose(affine.transform_points((10, 20, 30)), (11, 22, 33), atol=1e-12)
    np.testing.assert_allclose(AffineTransform.translation((1, 2, 3)).transform_points((0, 0, 0)), (1, 2, 3))
    np.testing.assert_allclose(AffineTransform().transform_points((4, 5, 6)), (4, 5, 6))


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1]), np.diag([1.0, 1, 1, 2])],
    ids=["zero", "3x3", "nan", "flat", "last row"],
)
def test_a_matrix_that_is_no_invertible_affine_map_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="affine transform"):
        AffineTransform(matrix)


@quick
@given(grids(), seeds)
def test_a_composite_applies_its_parts_from_first_to_last(grid: Grid, seed: int) -> None:
    field, affine = smooth_field(grid, seed, 5.0), random_affine(seed)
    points = points_inside(grid, 10, seed)
    composite = CompositeTransform([field, affine])
    expected = affine.transform_points(field.transform_points(points))
    np.testing.assert_allclose(composite.transform_points(points), expected, atol=1e-6)
    np.testing.assert_allclose(mapped_by_sitk(composite.to_sitk(), points), expected, atol=1e-3)
    turned_around = CompositeTransform([affine, field]).transform_points(points)
    assert np.abs(turned_around - expected).max() > 1e-3


def test_nested_composites_become_one_row() -> None:
    a, b, c = (AffineTransform.translation((n, 0, 0)) for n in (1, 2, 3))
    nested = CompositeTransform([CompositeTransform([a, b]), c])
    assert nested.transforms == (a, b, c)
    foreign = ItkTransform(sitk.CompositeTransform([b.to_sitk(), a.to_sitk()]))
    flat = CompositeTransform([foreign, c]).to_sitk()
    assert flat.GetNumberOfTransforms() == 3
    assert flat.TransformPoint((0, 0, 0)) == (6, 0, 0)


def test_the_empty_composite_is_the_identity() -> None:
    points = random_points(0)
    np.testing.assert_array_equal(CompositeTransform([]).transform_points(points), points)


@quick
@given(grids(), seeds)
def test_a_foreign_transform_maps_points_as_it_does_in_simpleitk(grid: Grid, seed: int) -> None:
    transform = spline(grid, seed)
    points = points_inside(grid, 10, seed)
    expected = mapped_by_sitk(transform.to_sitk(), points)
    np.testing.assert_allclose(transform.transform_points(points), expected, atol=1e-9)
    block = torch.from_numpy(points.T.reshape(3, 2, 5, 1).copy()).float()
    assert transform.map_world(block).shape == block.shape
    np.testing.assert_allclose(transform.map_world(block).flatten(1).T, expected, atol=1e-3)


def test_all_kinds_are_transforms_and_keep_the_shape_of_the_points() -> None:
    grid = Grid((6, 6, 6))
    kinds = [
        AffineTransform(),
        CompositeTransform([AffineTransform()]),
        spline(grid, 0),
        smooth_field(grid, 0, 1.0),
    ]
    for transform in kinds:
        assert isinstance(transform, Transform)
        for shape in ((3,), (1, 3), (2, 4, 3), (0, 3)):
            assert transform_points(transform, np.ones(shape)).shape == shape
