"""Volumes and label maps from files: the same in every format, or one clear sentence."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from SAMRegistrationLib.errors import InputError, RegistrationWarning
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image, read_labels, write_image
from SAMRegistrationLib.itk_files import read_sitk

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PIXEL_TYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Oblique grids, some of them mirrored, as far from the world's origin as scanners put them."""
    size = draw(st.tuples(*[st.integers(4, 7)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 6.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-600.0, 600.0)] * 3))
    vector = draw(st.tuples(*[st.floats(-np.pi, np.pi)] * 3))
    axes = Rotation.from_rotvec(vector).as_matrix() @ np.diag([1, 1, draw(st.sampled_from([1, -1]))])
    return Grid(size, spacing, origin, tuple(axes.ravel()))


def volume(grid: Grid, pixel_type: str = "int16", seed: int = 0) -> Image:
    values = np.random.default_rng(seed).integers(0, 100, grid.shape).astype(np.float32)
    return Image(torch.from_numpy(values), grid, pixel_type)


def plain_grid() -> Grid:
    return Grid((8, 7, 6), (1.0, 1.5, 2.0), (10.0, -20.0, 30.0))


def write_array(values: np.ndarray, path: Path, vector: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=vector), str(path))
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grid=grids(), pixel_type=st.sampled_from(PIXEL_TYPES), seed=st.integers(0, 1000))
def test_every_format_gives_back_the_same_image(tmp_path: Path, grid: Grid, pixel_type: str, seed: int) -> None:
    image = volume(grid, pixel_type, seed)
    for suffix in SUFFIXES:
        path = tmp_path / f"image{suffix}"
        write_image(image, path)
        found = read_image(path)
        assert torch.equal(found.data, image.data)
        assert found.pixel_type == pixel_type
        # NIfTI stores its geometry as float32: 600 mm to about 3e-5 mm.
        np.testing.assert_allclose(found.grid.corners(), grid.corners(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_read_as_simpleitk_reads_it(tmp_path: Path, suffix: str) -> None:
    axes = Rotation.from_euler("xyz", [20, -30, 40], degrees=True).as_matrix()
    source = sitk.GetImageFromArray(np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32))
    source.SetDirection(axes.ravel().tolist())
    source.SetOrigin((5.0, 6.0, 7.0))
    source.SetSpacing((0.7, 0.8, 3.0))
    sitk.WriteImage(source, str(tmp_path / f"image{suffix}"))
    image = read_image(tmp_path / f"image{suffix}")
    np.testing.assert_array_equal(image.data.numpy(), sitk.GetArrayFromImage(source))
    point = source.TransformContinuousIndexToPhysicalPoint((1.5, 2.5, 3.5))
    np.testing.assert_allclose(image.grid.to_world((1.5, 2.5, 3.5)), point, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_writing_in_another_pixel_type_rounds_and_clips(tmp_path: Path, suffix: str) -> None:
    image = volume(plain_grid(), "float32")
    image.data[0, 0, :4] = torch.tensor([-3.0, 1.4, 1.6, 300.0])
    write_image(image, tmp_path / f"image{suffix}", pixel_type="uint8")
    found = read_image(tmp_path / f"image{suffix}")
    assert found.pixel_type == "uint8"
    assert found.data[0, 0, :4].tolist() == [0, 1, 2, 255]


def test_nifti_is_compressed_by_its_name(tmp_path: Path) -> None:
    image = volume(plain_grid())
    write_image(image, tmp_path / "image.nii.gz")
    write_image(image, tmp_path / "image.nii")
    assert (tmp_path / "image.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert (tmp_path / "image.nii").stat().st_size == 352 + 2 * image.grid.number_of_voxels


def test_a_4d_image_with_one_time_point_is_its_volume(tmp_path: Path) -> None:
    single = sitk.JoinSeries([volume(plain_grid()).to_sitk()])
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(single, str(tmp_path / f"image{suffix}"))
        image = read_image(tmp_path / f"image{suffix}")
        assert image.grid.isclose(plain_grid(), 1e-4)
        assert torch.equal(image.data, volume(plain_grid()).data)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no volumes, with a word of the sentence that refuses each."""
    values = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    broken = values.copy()
    broken[1, 2, 3] = np.nan
    infinite = values.copy()
    infinite[0, 0, 0] = np.inf
    good = volume(plain_grid()).to_sitk()
    sitk.WriteImage(sitk.JoinSeries([good, good]), str(folder / "4d.nii.gz"))
    sitk.WriteImage(good[:, :, 0], str(folder / "2d.nii.gz"))
    (folder / "text.nii.gz").write_text("this is no image")
    (folder / "empty.nrrd").touch()
    (folder / "folder").mkdir()
    (folder / "folder" / "readme.txt").write_text("no DICOM here")
    return {
        "missing": (folder / "missing.nii.gz", "file not found"),
        "text": (folder / "text.nii.gz", "not an image that can be read"),
        "empty": (folder / "empty.nrrd", "not an image that can be read"),
        "2d": (folder / "2d.nii.gz", r"2D image \(8 x 7\)"),
        "png": (write_array(np.zeros((9, 9), np.uint8), folder / "2d.png"), "2D image"),
        "4d": (folder / "4d.nii.gz", r"4D image \(8 x 7 x 6 x 2\)"),
        "thin": (write_array(values[:3], folder / "thin.nii.gz"), r"too thin .*8 x 7 x 3"),
        "vector": (
            write_array(np.zeros((6, 7, 8, 3), np.float32), folder / "vector.nii.gz", vector=True),
            "color, vector or complex",
        ),
        "color": (write_array(np.zeros((6, 7, 8, 3), np.uint8), folder / "c.mha", vector=True), "color, vector"),
        "complex": (write_array(values.astype(np.complex64), folder / "complex.nii.gz"), "complex"),
        "nan": (write_array(broken, folder / "nan.nii.gz"), "1 voxels that are NaN"),
        "infinite": (write_array(infinite, folder / "infinite.nrrd"), "1 voxels that are NaN or infinite"),
        "constant": (write_array(np.full((6, 7, 8), 7, np.int16), folder / "constant.nii.gz"), "every voxel is 7"),
        "folder": (folder / "folder", "no DICOM images"),
    }


def test_what_is_no_volume_is_refused_in_one_sentence_that_names_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind, (path, words) in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=words) as caught:
            read_image(path)
            pytest.fail(f"accepted: {kind}")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_refused(
    tmp_path: Path, suffix: str, compress: bool, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"image{suffix}"
    write_image(volume(plain_grid(), "float64"), path, compress=compress)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[: int(kept * data.stat().st_size)])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_image(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".nhdr", ".mha"])
def test_a_compressed_file_with_a_changed_byte_is_refused(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"image{suffix}"
    write_image(volume(Grid((24, 24, 24)), "float64"), path)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) * 3 // 4] ^= 0x55
    data.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_image(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_header_without_its_data_file_is_explained(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    write_image(volume(plain_grid()), path)
    for data in set(tmp_path.iterdir()) - {path}:
        data.unlink()
    with pytest.raises(InputError, match="data file that belongs to it is missing"):
        read_image(path)


def test_a_nifti_file_with_a_sheared_sform_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "sheared.nii"
    write_image(volume(plain_grid()), path)
    header = bytearray(path.read_bytes())
    struct.pack_into("<hh", header, 252, 0, 1)  # qform_code, sform_code
    struct.pack_into("<12f", header, 280, 1, 0.3, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(header)
    with pytest.raises(InputError, match="sheared"):
        read_image(path)


def test_a_nrrd_file_with_sheared_axes_is_refused(tmp_path: Path) -> None:
    image = volume(plain_grid()).to_sitk()
    image.SetDirection((1, 0.3, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "sheared.nrrd"))
    with pytest.raises(InputError, match="orthonormal"):
        read_image(tmp_path / "sheared.nrrd")


def big_endian_nifti(values: np.ndarray, path: Path) -> Path:
    """A NIfTI-1 file with the bytes of every number in the other order."""
    header = bytearray(352)
    depth, height, width = values.shape
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into(">hh", header, 70, 16, 32)  # float32
    struct.pack_into(">8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into(">f", header, 108, 352)
    struct.pack_into(">h", header, 252, 1)
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + values.astype(">f4").tobytes())
    return path


def test_a_big_endian_nifti_file_is_read_and_checked_in_its_own_byte_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    image = read_image(big_endian_nifti(values, tmp_path / "image.nii"))
    np.testing.assert_array_equal(image.data.numpy(), values)
    values[1, 2, 3] = np.inf
    with pytest.raises(InputError, match="1 voxels that are NaN or infinite"):
        read_image(big_endian_nifti(values, tmp_path / "image.nii"))


def test_reading_leaves_itk_warnings_as_they_were(tmp_path: Path) -> None:
    write_image(volume(plain_grid()), tmp_path / "image.nii.gz")
    for shown in (True, False):
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
        read_image(tmp_path / "image.nii.gz")
        assert sitk.ProcessObject.GetGlobalWarningDisplay() == shown
    sitk.ProcessObject.SetGlobalWarningDisplay(True)


@pytest.mark.parametrize("suffix", [".jpg", "", ".nii.zip"])
def test_an_unknown_file_type_is_not_written(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="must end in one of"):
        write_image(volume(plain_grid()), tmp_path / f"image{suffix}")
    assert list(tmp_path.iterdir()) == []


def ct_like() -> np.ndarray:
    generator = np.random.default_rng(0)
    values = np.full((16, 16, 16), -1000.0) + generator.normal(0, 20, (16, 16, 16))
    values[4:12, 4:12, 4:12] = generator.normal(40, 30, (8, 8, 8))
    values[8, 8, 8] = 1200
    return values


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (ct_like(), "CT"),
        (np.where(ct_like() < -900, -3024, ct_like()), "CT"),
        (np.abs(ct_like()), None),
        (ct_like() + 1024, None),
        (np.random.default_rng(0).uniform(-4096, 4094, (16, 16, 16)), None),
        (np.where(ct_like() > -100, 900.0, -1000.0), None),
    ],
    ids=["HU", "HU with padding", "MR", "CT without its offset", "MR phase", "two values"],
)
def test_ct_is_recognized_by_its_values(tmp_path: Path, values: np.ndarray, modality: str | None) -> None:
    path = write_array(np.rint(values).astype(np.int16), tmp_path / "image.nii.gz")
    assert read_image(path).modality == modality
    assert read_image(path, modality="MR").modality == "MR"


@pytest.mark.data
def test_the_real_volumes_are_recognized(data_dir: Path) -> None:
    expected = {
        "head_neck/vhm_head.nii.gz": "CT",
        "headneck_openkbp/okbp_003.nii.gz": "CT",
        "abdomen_ct_cbct/panc001_cbct02.nii.gz": "CT",
        "brain_mr/brainweb_t1.nii.gz": None,
    }
    assert {name: read_image(data_dir / name).modality for name in expected} == expected


def labels_on(grid: Grid) -> Image:
    data = torch.zeros(grid.shape)
    data[2:4, 2:5, 2:6] = 1
    data[4:, 5:, 6:] = 3
    return Image(data, grid, "uint8")


def test_labels_on_the_grid_of_their_image_are_taken_as_they_are(tmp_path: Path) -> None:
    labels = labels_on(plain_grid())
    write_image(labels, tmp_path / "labels.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_labels(tmp_path / "labels.nii.gz", like=volume(plain_grid()))
    assert found.grid == plain_grid()
    assert found.pixel_type == "uint8"
    assert torch.equal(found.data, labels.data)


def test_cropped_labels_return_to_their_place_with_a_warning(tmp_path: Path) -> None:
    labels = labels_on(plain_grid())
    cropped = Image(labels.data[2:, 2:, 2:], plain_grid().cropped((2, 2, 2), plain_grid().size), "uint8")
    write_image(cropped, tmp_path / "labels.nrrd")
    with pytest.warns(RegistrationWarning, match="another grid"):
        found = read_labels(tmp_path / "labels.nrrd", like=plain_grid())
    assert torch.equal(found.data, labels.data)


def test_labels_on_another_grid_are_resampled_as_simpleitk_does(tmp_path: Path) -> None:
    axes = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    target = Grid((12, 12, 8), (0.9, 0.9, 1.7), (8.0, -22.0, 29.0), tuple(axes.ravel()))
    labels = labels_on(plain_grid())
    write_image(labels, tmp_path / "labels.mha")
    reference = sitk.Resample(
        labels.to_sitk(), volume(target).to_sitk(), sitk.Transform(), sitk.sitkNearestNeighbor, 0.0
    )
    with pytest.warns(RegistrationWarning):
        found = read_labels(tmp_path / "labels.mha", like=target)
    np.testing.assert_array_equal(found.data.numpy(), sitk.GetArrayFromImage(reference))


def test_labels_that_do_not_meet_their_image_are_refused(tmp_path: Path) -> None:
    write_image(labels_on(plain_grid()), tmp_path / "labels.nii.gz")
    with pytest.raises(InputError, match="does not overlap its image"):
        read_labels(tmp_path / "labels.nii.gz", like=Grid((8, 8, 8), origin=(500.0, 0.0, 0.0)))


def test_values_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    path = write_array(np.random.default_rng(0).normal(size=(6, 6, 6)), tmp_path / "values.nii.gz")
    with pytest.raises(InputError, match="not whole numbers"):
        read_labels(path)
    path = write_array(np.zeros((6, 6, 6), np.uint8), tmp_path / "zeros.nii.gz")
    with pytest.raises(InputError, match="holds no labels"):
        read_labels(path)


def test_an_image_of_vectors_is_read_whole(tmp_path: Path) -> None:
    field = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    path = write_array(field, tmp_path / "field.nii.gz", vector=True)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_sitk(path)), field)
