"""Fields for hosts that interpolate cubically: they follow the linear course of the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib.field import DisplacementField
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.worker import cubic_field as module
from SAMRegistrationLib.worker.cubic_field import TOLERANCE_MM, cubic_field, interpolated

GRID = Grid((13, 15, 11), (4.0, 4.0, 4.0), (-30.0, 12.0, 5.0))


def bent_field() -> DisplacementField:
    """A field that bends about as much as those of registrations: second differences of up to some millimeters."""
    noise = torch.randn(1, 3, *GRID.shape, generator=torch.Generator().manual_seed(2))
    return DisplacementField(4 * functional.avg_pool3d(noise, 3, 1, 1), GRID)


def largest_distance(followed: DisplacementField, factor: int, field: DisplacementField) -> float:
    """Between the cubic course of one and the linear course of the other, all over the grid."""
    voxels = np.random.default_rng(0).uniform(0, np.array(GRID.shape) - 1, (30000, 3))
    gap = interpolated(followed, voxels * factor, cubic=True) - interpolated(field, voxels, cubic=False)
    return float(np.linalg.norm(gap, axis=1).max())


def test_the_cubic_course_follows_the_linear_one() -> None:
    field = bent_field()
    followed, gap = cubic_field(field, GRID)
    factor = round(4.0 / followed.grid.spacing[0])
    assert followed.grid.size == tuple(factor * (n - 1) + 1 for n in GRID.size)
    assert largest_distance(followed, factor, field) <= gap * 1.01 < TOLERANCE_MM * 1.2


def test_a_grid_twice_as_fine_halves_more_than_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VOXELS_FINER", 20_000)
    field = bent_field()
    followed, gap = cubic_field(field, GRID)
    assert followed.grid.spacing == (2.0, 2.0, 2.0)
    assert gap < largest_distance(field, 1, field) / 4


def test_a_straight_field_stays_as_it_is() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij")
    field = DisplacementField(torch.from_numpy(np.stack([x, 2 * y, z - x])[None]).float(), GRID)
    followed, gap = cubic_field(field, GRID)
    assert followed is field and gap == 0.0


def test_a_field_that_would_grow_too_large_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VOXELS", 10_000)
    field = bent_field()
    followed, gap = cubic_field(field, GRID)
    assert followed is field
    assert gap == pytest.approx(largest_distance(field, 1, field), rel=0.25)


def test_what_lies_outside_the_region_does_not_count() -> None:
    field = bent_field()
    field.data[..., :4] = 0
    region = GRID.cropped((0, 0, 0), (3, 15, 11))
    assert cubic_field(field, region)[1] < 1e-6 < cubic_field(field, GRID)[1]


def test_samples_are_interpolated_as_vtk_does() -> None:
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    field = bent_field()
    image = vtk.vtkImageData()
    image.SetDimensions(*GRID.size)
    image.SetSpacing(*GRID.spacing)
    image.SetOrigin(*GRID.origin)
    samples = np.ascontiguousarray(field.data[0].permute(1, 2, 3, 0).numpy()).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(samples, deep=True))
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(image)
    voxels = np.random.default_rng(1).uniform(0, np.array(GRID.shape) - 1, (2000, 3))
    for cubic in (False, True):
        transform.SetInterpolationMode(vtk.VTK_CUBIC_INTERPOLATION if cubic else vtk.VTK_LINEAR_INTERPOLATION)
        places = GRID.to_world(voxels[:, ::-1])
        expected = np.array([transform.TransformPoint(place) for place in places.tolist()]) - places
        assert interpolated(field, voxels, cubic) == pytest.approx(expected, abs=1e-4)
