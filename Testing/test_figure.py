"""The picture of a registration: what lies where, and which colors must appear."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from SAMRegistrationLib import figure
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.field import DisplacementField
from SAMRegistrationLib.figure import _View, registration_figure
from SAMRegistrationLib.figure_scene import make_scene
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.transforms import AffineTransform

GRID = Grid((18, 16, 14), (2.0, 2.0, 3.0), (-17.0, -15.0, -20.0))
FOLD_RGB = (255, 31, 208)


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn does not depend on the resolution; its time does."""
    monkeypatch.setattr(figure, "RESOLUTION_DPI", 50)


def head(grid: Grid = GRID) -> Image:
    """A body of water in air, with bone at its left, anterior, superior side (LPS: +x, -y, +z)."""
    z, y, x = np.indices(grid.shape)
    world = grid.to_world(np.stack([x, y, z], axis=-1))
    values = np.where(np.all(np.abs(world) < (12, 10, 14), axis=-1), 0.0, -1000.0)
    values[np.all(np.abs(world - (8, -6, 10)) < (3, 3, 4), axis=-1)] = 200.0
    return Image(torch.from_numpy(values).float(), grid, "int16", "CT")


def picture(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[..., :3]


def test_the_patient_stands_upright_with_the_right_side_on_the_left() -> None:
    image = head()
    scene = make_scene(image, image, image, DisplacementField.zero(GRID))
    bone = scene.fixed == scene.fixed.max()
    z, y, x = (round(float(along.mean())) for along in np.nonzero(bone))
    for plane, (row_is_first_half, column_is_first_half) in enumerate(
        [(True, False), (True, False), (True, True)]
    ):
        view = _View.of(scene, plane)
        # Cut through the bone instead of the middle.
        pixels = _View(plane, (z, y, x), view.box, view.size).cut(bone)
        row, column = (along.mean() / n for along, n in zip(np.nonzero(pixels), pixels.shape, strict=True))
        assert (row < 0.5) == row_is_first_half
        assert (column < 0.5) == column_is_first_half


def test_the_scene_does_not_depend_on_how_the_volumes_are_stored() -> None:
    image = head()
    stored = Image.from_sitk(sitk.Flip(sitk.PermuteAxes(image.to_sitk(), (1, 2, 0)), (True, False, True)), "CT")
    straight = make_scene(image, image, image, DisplacementField.zero(image.grid))
    turned = make_scene(stored, stored, stored, DisplacementField.zero(stored.grid))
    assert turned.grid.isclose(straight.grid)
    assert np.array_equal(turned.fixed, straight.fixed)
    assert np.array_equal(turned.after, straight.after)
    assert turned.box() == straight.box()


def test_the_scene_shows_no_values_where_the_moving_volume_has_none() -> None:
    image = head()
    half = GRID.cropped((0, 0, 0), (9, 16, 14))
    moving = Image(image.data[:, :, :9], half, "int16", "CT")
    still = DisplacementField.zero(GRID)
    scene = make_scene(image, moving, still.warp(moving), still, fixed_labels=image.with_data(image.data > 100))
    assert np.isnan(scene.after[:, :, 9:]).all()
    assert not np.isnan(scene.after[:, :, :9]).any()
    assert np.array_equal(np.isnan(scene.before), np.isnan(scene.after))
    assert scene.box()[2].stop < 9 + 12 / 2 + 1  # the body reaches further, but not the moving data
    assert scene.middle()[2] > 9  # the labels lie where there is no moving data; they are shown all the same


def test_what_is_shown_is_scaled_to_the_soft_tissue_window_or_to_the_bulk_of_the_values() -> None:
    image = head()
    still = DisplacementField.zero(GRID)
    scene = make_scene(image, image, image, still)
    assert set(np.unique(scene.fixed)) == {0.0, np.float32(160 / 400), np.float32(360 / 400)}
    noise = Image(torch.rand(GRID.shape, generator=torch.Generator().manual_seed(0)) * 900 + 100, GRID)
    scaled = make_scene(noise, noise, noise, still).fixed
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert 0.3 < scaled.mean() < 0.7


def test_folds_are_drawn_in_their_own_color_and_only_where_there_are_some(tmp_path: Path) -> None:
    image = head()
    folding = DisplacementField.zero(GRID)
    x = torch.arange(18.0)
    folding.data[:, 0] = 12 * torch.exp(-((x - 9) ** 2) / 6)
    for name, field in (("smooth", DisplacementField.zero(GRID)), ("folded", folding)):
        registration_figure(image, image, field.warp(image), field, tmp_path / f"{name}.png")
    counts = [int((picture(tmp_path / f"{n}.png") == FOLD_RGB).all(axis=-1).sum()) for n in ("smooth", "folded")]
    assert counts[0] == 0
    assert counts[1] > 100


def test_contours_and_a_title_change_the_picture(tmp_path: Path) -> None:
    image, still = head(), DisplacementField.zero(GRID)
    labels = image.with_data((image.data > 100).float())
    registration_figure(image, image, image, still, tmp_path / "plain.png")
    registration_figure(
        image, image, image, still, tmp_path / "full.png", fixed_labels=labels, moving_labels=labels, title="pair"
    )
    plain, full = picture(tmp_path / "plain.png"), picture(tmp_path / "full.png")
    assert full.shape[0] > plain.shape[0]
    yellow = (full[..., 0] > 200) & (full[..., 1] > 160) & (full[..., 2] < 120)
    assert yellow.sum() > 10


def test_volumes_that_do_not_overlap_are_drawn_all_the_same(tmp_path: Path) -> None:
    image = head()
    away = displaced(image, 500.0)
    still = DisplacementField.zero(GRID)
    registration_figure(image, away, still.warp(away), still, tmp_path / "apart.png")
    assert picture(tmp_path / "apart.png").std() > 10


def displaced(image: Image, distance: float) -> Image:
    origin = tuple(AffineTransform.translation((distance, 0, 0)).transform_points(image.grid.origin))
    return Image(image.data, Grid(image.grid.size, image.grid.spacing, origin), image.pixel_type, image.modality)


def test_an_unknown_file_type_or_a_missing_matplotlib_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, still = head(), DisplacementField.zero(GRID)
    with pytest.raises(InputError, match="cannot write"):
        registration_figure(image, image, image, still, tmp_path / "picture.xyz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="needs matplotlib"):
        registration_figure(image, image, image, still, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.data
def test_a_real_pair_is_drawn(data_dir: Path, tmp_path: Path) -> None:
    fixed, moving = (
        read_image(data_dir / "brain_mr" / f"{name}.nii.gz") for name in ("brainweb_t1", "brainweb_pd")
    )
    still = DisplacementField.zero(fixed.grid)
    registration_figure(fixed, moving, still.warp(moving), still, tmp_path / "brain.png")
    drawn = picture(tmp_path / "brain.png")
    assert drawn.shape[1] > 900
    assert drawn.std() > 20
