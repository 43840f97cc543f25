"""The request `compare`: views on a result and the place to look at first, from files to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import phantom_pair

from SAMRegistrationLib import AffineTransform, DisplacementField, Image, read_image, write_image, write_transform
from SAMRegistrationLib.errors import Cancelled, UsageError
from SAMRegistrationLib.transforms import Transform
from SAMRegistrationLib.worker.comparison import compare
from SAMRegistrationLib.worker.dispatch import Task

TASK = Task(lambda *_: None, lambda: None, print)
VIEWS = ["checkerboard", "difference", "jacobian"]


@pytest.fixture(scope="module")
def fixed() -> Image:
    return phantom_pair(6.0).fixed


def files(folder: Path, fixed: Image, moving: Image, transform: Transform) -> dict[str, str]:
    paths = {name: folder / f"{name}.nrrd" for name in ("fixed", "moving")}
    write_image(fixed, paths["fixed"])
    write_image(moving, paths["moving"])
    write_transform(transform, folder / "transform.h5")
    names = {**paths, "transform": folder / "transform.h5", "output": folder / "views"}
    return {name: str(path) for name, path in names.items()}


def test_equal_volumes_differ_nowhere(fixed: Image, tmp_path: Path) -> None:
    found = compare(TASK, **files(tmp_path, fixed, fixed, AffineTransform()), views=VIEWS)
    difference, board, determinant = (
        sitk.ReadImage(found[view]) for view in ("difference", "checkerboard", "jacobian")
    )
    assert difference.GetSize() == fixed.grid.size and difference.GetOrigin() == pytest.approx(fixed.grid.origin)
    assert np.abs(sitk.GetArrayFromImage(difference)).max() < 0.1
    assert np.abs(sitk.GetArrayFromImage(board) - fixed.data.numpy()).max() < 0.1
    assert np.abs(sitk.GetArrayFromImage(determinant) - 1).max() < 1e-3
    assert found["worst"]["folds"] is False and found["worst"]["value"] < 0.1


def test_the_checkerboard_shows_both_volumes_in_turn(fixed: Image, tmp_path: Path) -> None:
    other = fixed.with_data(fixed.data + 5000)
    found = compare(TASK, **files(tmp_path, fixed, other, AffineTransform()), views=["checkerboard"])
    from_other = (read_image(found["checkerboard"]).data - fixed.data) > 2500
    assert 0.4 < from_other.float().mean() < 0.6
    assert not from_other[0, 0, 0] and from_other[0, 0, fixed.grid.size[0] // 4]
    assert "difference" not in found


def test_the_place_to_look_at_is_where_the_volumes_differ(fixed: Image, tmp_path: Path) -> None:
    changed = fixed.data.clone()
    changed[8:16, 8:16, :8] += 700
    found = compare(TASK, **files(tmp_path, fixed, fixed.with_data(changed), AffineTransform()), views=[])
    assert found["worst"]["position"] == pytest.approx(fixed.grid.to_world([3.5, 11.5, 11.5]).tolist())
    assert found["worst"]["value"] == pytest.approx(700, rel=0.01)


def test_a_place_that_folds_is_looked_at_first(fixed: Image, tmp_path: Path) -> None:
    field = DisplacementField.zero(fixed.grid)
    field.data[0, 0, 5, 7, 8], field.data[0, 0, 5, 7, 10] = 15.0, -15.0
    worst = compare(TASK, **files(tmp_path, fixed, fixed, field), views=[])["worst"]
    assert worst["folds"] is True and worst["value"] < 0
    assert np.linalg.norm(worst["position"] - fixed.grid.to_world([9, 7, 5])) < 1.0


def test_nothing_is_written_after_a_cancellation_or_for_an_unknown_view(fixed: Image, tmp_path: Path) -> None:
    def cancelled() -> None:
        raise Cancelled("cancelled")

    paths = files(tmp_path, fixed, fixed, AffineTransform())
    with pytest.raises(Cancelled):
        compare(Task(lambda *_: None, cancelled, print), **paths, views=VIEWS)
    with pytest.raises(UsageError, match="there is no view 'fade'"):
        compare(TASK, **paths, views=["fade"])
    assert not Path(paths["output"]).exists()
