"""A DICOM folder gives the volume that its slices are, or one clear sentence."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import grids, rotation

from SAMRegistrationLib.errors import InputError, RegistrationWarning
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image_io import read_image

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
OBLIQUE = Grid((9, 8, 6), (0.8, 0.9, 2.5), (-100.0, 50.0, -300.0), tuple(rotation((0.4, -0.3, 0.2)).ravel()))


def source_volume(grid: Grid, seed: int = 0) -> sitk.Image:
    values = np.random.default_rng(seed).integers(-1000, 1500, grid.shape).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def right_handed(grid: Grid) -> Grid:
    """DICOM knows only right-handed stacks: rows, columns and their cross product."""
    axes = grid.axes * (1, 1, np.sign(np.linalg.det(grid.axes)))
    return Grid(grid.size, grid.spacing, grid.origin, tuple(axes.ravel()))


def write_series(
    volume: sitk.Image,
    folder: Path,
    *,
    series: str = "1.2.3.1",
    description: str = "chest",
    modality: str = "CT",
    drift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    left_out: tuple[int, ...] = (),
    tags: dict[str, str] | None = None,
) -> list[Path]:
    """Write a volume as DICOM slices with shuffled names; each slice is moved by `drift` mm more than the last."""
    folder.mkdir(exist_ok=True)
    names = [f"{series}-{number}.dcm" for number in range(volume.GetDepth())]
    random.Random(1).shuffle(names)
    axes = np.array(volume.GetDirection()).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    written = []
    for number in sorted(set(range(volume.GetDepth())) - set(left_out)):
        one = volume[:, :, number]
        one = sitk.GetImageFromArray(sitk.GetArrayFromImage(one)[None])
        one.SetSpacing(volume.GetSpacing())
        position = np.array(volume.TransformIndexToPhysicalPoint((0, 0, number))) + number * np.array(drift)
        values = {
            "0008|0016": CT_IMAGE_STORAGE,
            "0008|0018": f"{series}.{number + 1}",
            "0008|0060": modality,
            "0008|103e": description,
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{value:.9g}" for value in position),
            "0020|0037": "\\".join(f"{value:.9g}" for value in (*axes[:, 0], *axes[:, 1])),
            **(tags or {}),
        }
        for tag, value in values.items():
            one.SetMetaData(tag, value)
        path = folder / names[number]
        writer.SetFileName(str(path))
        writer.Execute(one)
        written.append(path)
    return written


def assert_same(folder: Path, volume: sitk.Image) -> None:
    image = read_image(folder)
    np.testing.assert_array_equal(image.data.numpy(), sitk.GetArrayFromImage(volume))
    np.testing.assert_allclose(image.grid.corners(), Grid.from_sitk(volume).corners(), atol=1e-4)
    assert image.pixel_type == "int16"


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grid=grids(largest=7).map(right_handed), seed=st.integers(0, 100))
def test_an_oblique_series_with_shuffled_names_is_its_volume(
    tmp_path_factory: pytest.TempPathFactory, grid: Grid, seed: int
) -> None:
    volume = source_volume(grid, seed)
    folder = tmp_path_factory.mktemp("series")
    write_series(volume, folder)
    assert_same(folder, volume)


def test_the_modality_comes_from_the_header(tmp_path: Path) -> None:
    for code, expected in {"CT": "CT", "MR": "MR", "PT": None}.items():
        values = source_volume(OBLIQUE) + 1000  # no Hounsfield units, so that nothing is guessed
        write_series(values, tmp_path / code, modality=code)
        assert read_image(tmp_path / code).modality == expected


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    volume = source_volume(OBLIQUE)
    write_series(volume, tmp_path)
    (tmp_path / "notes.txt").write_text("measured in spring")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    sitk.WriteImage(sitk.Image(9, 9, sitk.sitkUInt8), str(tmp_path / "key_image.png"))
    (tmp_path / "other").mkdir()
    assert_same(tmp_path, volume)


def test_rescale_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    volume = source_volume(OBLIQUE)
    write_series(volume, tmp_path, tags={"0028|1052": "-1024", "0028|1053": "1"})
    written = sitk.ReadImage(str(next(tmp_path.glob("*.dcm"))))
    image = read_image(tmp_path)
    height = image.grid.to_voxel(written.GetOrigin())[2]
    np.testing.assert_array_equal(image.data[round(height)].numpy(), sitk.GetArrayFromImage(written)[0])


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    write_series(source_volume(OBLIQUE), tmp_path, left_out=(3,))
    with pytest.raises(InputError, match=r"misses a slice: .* is 5 mm, the others are 2\.5 mm"):
        read_image(tmp_path)


def test_two_series_are_listed(tmp_path: Path) -> None:
    write_series(source_volume(OBLIQUE), tmp_path)
    write_series(source_volume(OBLIQUE), tmp_path, series="1.2.3.2", description="lung", left_out=(0,))
    with pytest.raises(InputError, match=r'2 DICOM series.*CT "chest" with 6 slices; CT "lung" with 5 slices'):
        read_image(tmp_path)


def test_two_slices_at_one_position_are_refused(tmp_path: Path) -> None:
    volume = source_volume(OBLIQUE)
    first = write_series(volume, tmp_path)
    (tmp_path / "again.dcm").write_bytes(first[2].read_bytes())
    with pytest.raises(InputError, match="same position") as caught:
        read_image(tmp_path)
    assert "again.dcm" in str(caught.value) and first[2].name in str(caught.value)


def test_unevenly_spaced_slices_are_refused(tmp_path: Path) -> None:
    volume = source_volume(OBLIQUE)
    write_series(volume, tmp_path, left_out=(5,))
    volume.SetOrigin(volume.TransformContinuousIndexToPhysicalPoint((0, 0, 0.25)))
    write_series(volume, tmp_path, left_out=(0, 1, 2, 3, 4))
    with pytest.raises(InputError, match=r"unevenly spaced \(2\.5 to 3\.125 mm\)"):
        read_image(tmp_path)


def test_a_localizer_in_the_series_is_refused(tmp_path: Path) -> None:
    write_series(source_volume(OBLIQUE), tmp_path)
    turned = Grid(OBLIQUE.size, OBLIQUE.spacing, OBLIQUE.origin, tuple(rotation((1.5, 0, 0)).ravel()))
    for path in write_series(source_volume(turned), tmp_path / "turned")[:1]:
        path.rename(tmp_path / "localizer.dcm")
    with pytest.raises(InputError, match="localizer"):
        read_image(tmp_path)


def test_slices_of_several_sizes_are_refused(tmp_path: Path) -> None:
    volume = source_volume(OBLIQUE)
    write_series(volume, tmp_path, left_out=(5,))
    write_series(volume[:-1, :, :], tmp_path, left_out=(0, 1, 2, 3, 4))
    with pytest.raises(InputError, match="differ in size"):
        read_image(tmp_path)


def test_slices_without_positions_are_refused(tmp_path: Path) -> None:
    position, unknown = b"\x20\x00\x32\x00", b"\x20\x00\x33\x00"
    for path in write_series(source_volume(OBLIQUE), tmp_path):
        content = path.read_bytes()
        assert content.count(position) == 1
        path.write_bytes(content.replace(position, unknown))
    with pytest.raises(InputError, match="does not say where its slices lie"):
        read_image(tmp_path)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_slice_is_refused(tmp_path: Path, kept: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_series(source_volume(OBLIQUE), tmp_path)[-1]
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_image(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_single_slice_asks_for_its_folder(tmp_path: Path) -> None:
    path = write_series(source_volume(OBLIQUE), tmp_path)[0]
    with pytest.raises(InputError, match="give the folder"):
        read_image(path)


@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_rounded_positions_are_no_tilt(tmp_path: Path, shift: float) -> None:
    """Slices that drift by less than half a voxel over the whole stack stay as they are."""
    volume = source_volume(OBLIQUE)
    drift = tuple(shift * OBLIQUE.axes[:, 1])
    write_series(volume, tmp_path, drift=drift)
    assert_same(tmp_path, volume)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tilted_gantry_is_undone_with_a_warning(tmp_path: Path, sign: int) -> None:
    """A smooth pattern, sampled on the tilted slices, is found again at the same places of the world."""
    size, spacing = (24, 22, 12), (1.0, 1.0, 3.0)
    grid = Grid(size, spacing, (-12.0, 40.0, -200.0), tuple(rotation((0.2, 0.1, -0.3)).ravel()))
    drift = sign * np.tan(np.radians(15)) * spacing[2] * grid.axes[:, 1] + 0.3 * grid.axes[:, 0]

    def pattern(points: np.ndarray) -> np.ndarray:
        return 1000 * np.sin(points @ [0.11, 0.07, 0.05])

    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1).transpose(2, 1, 0, 3)
    true_points = grid.to_world(index) + index[..., 2:] * drift
    volume = source_volume(grid)
    values = sitk.GetImageFromArray(np.rint(pattern(true_points)).astype(np.int16))
    values.CopyInformation(volume)
    write_series(values, tmp_path, drift=tuple(drift))

    tilt = np.degrees(np.arctan2(np.linalg.norm(drift), spacing[2]))
    with pytest.warns(RegistrationWarning, match=f"gantry tilt of {tilt:.1f} degrees"):
        image = read_image(tmp_path)
    points = image.grid.to_world(
        np.stack(np.meshgrid(*map(np.arange, image.grid.shape), indexing="ij"), -1)[..., ::-1]
    )
    number = grid.to_voxel(points)[..., 2:]
    in_slice = grid.to_voxel(points - number * drift)
    inside = ((in_slice > -1e-6) & (in_slice < np.array(size) - 1 + 1e-6)).all(-1)
    outside = ((in_slice < -0.51) | (in_slice > np.array(size) - 0.49)).any(-1)
    assert (image.data.numpy()[outside] == -1024).all()
    error = np.abs(image.data.numpy() - pattern(points))[inside]
    # Linear interpolation within the plane: at most curvature * h^2 / 8 per axis, and rounding.
    assert error.max() < 1000 * (0.11**2 + 0.07**2 + 0.05**2) / 4 + 1
    assert inside.sum() > 0.85 * np.prod(size)
    assert image.grid.contains(true_points).all()
