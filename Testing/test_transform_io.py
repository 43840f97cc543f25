"""Transform files: what is written reads back, in SimpleITK too; what is none is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from strategies import empty_sitk, points_inside, rotation, smooth_field

from SAMRegistrationLib import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    read_transform,
    write_transform,
)
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.transforms import ItkTransform, Transform, transform_points

GRID = Grid((9, 8, 7), (1.5, 2.0, 3.0), (-40, 25, 310), tuple(rotation((0.2, -0.5, 0.9)).ravel()))
POINTS = np.concatenate([points_inside(GRID, 20, 0), GRID.center + GRID.corners() * 2])
AFFINE = AffineTransform.about_center(rotation((0.1, 0.2, -0.3)) * 1.1, GRID.center, (12, -7, 30))
FIELD = smooth_field(GRID, 0, 6.0)
COMPOSITE = CompositeTransform([FIELD, AFFINE])


def spline() -> ItkTransform:
    transform = sitk.BSplineTransformInitializer(empty_sitk(GRID), (3, 3, 3))
    transform.SetParameters(tuple(np.random.default_rng(0).uniform(-5, 5, len(transform.GetParameters()))))
    return ItkTransform(transform)


def mapped_by_sitk(transform: sitk.Transform) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in POINTS.tolist()])


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".txt"])
@pytest.mark.parametrize(
    "transform", [AFFINE, FIELD, COMPOSITE, spline()], ids=["affine", "field", "both", "spline"]
)
def test_transform_files_map_points_as_before_and_as_in_simpleitk(
    tmp_path: Path, transform: Transform, suffix: str
) -> None:
    path = tmp_path / f"transform{suffix}"
    write_transform(transform, path)
    expected = transform_points(transform, POINTS)
    again = read_transform(path)
    assert type(again) is type(transform)
    np.testing.assert_allclose(transform_points(again, POINTS), expected, atol=1e-3)
    np.testing.assert_allclose(mapped_by_sitk(sitk.ReadTransform(str(path))), expected, atol=1e-3)


def test_an_affine_map_goes_through_a_matrix_file(tmp_path: Path) -> None:
    write_transform(AFFINE, tmp_path / "affine.mat")
    again = read_transform(tmp_path / "affine.mat")
    np.testing.assert_allclose(transform_points(again, POINTS), AFFINE.transform_points(POINTS), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd"])
def test_field_images_map_points_as_before_and_as_in_simpleitk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"field{suffix}"
    write_transform(FIELD, path)
    again = read_transform(path)
    assert isinstance(again, DisplacementField)
    assert again.grid.isclose(GRID)
    image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    for mapped in (again.transform_points(POINTS), mapped_by_sitk(sitk.DisplacementFieldTransform(image))):
        np.testing.assert_allclose(mapped, FIELD.transform_points(POINTS), atol=1e-3)


def test_a_composite_is_written_as_itk_types_that_slicer_reads(tmp_path: Path) -> None:
    path = tmp_path / "transform.h5"
    write_transform(COMPOSITE, path)
    content = path.read_bytes()
    for kind in ("CompositeTransform", "AffineTransform", "DisplacementFieldTransform"):
        assert f"{kind}_double_3_3".encode() in content
    again = read_transform(path)
    assert isinstance(again, CompositeTransform)
    assert [type(part) for part in again.transforms] == [DisplacementField, AffineTransform]


def test_a_nrrd_field_says_what_slicer_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "field.nrrd"
    write_transform(FIELD, path)
    header = path.read_bytes().split(b"\n\n")[0].decode()
    for line in (
        "type: float",
        "space: left-posterior-superior",
        "kinds: vector domain domain domain",
        "displacement field type:=resampling",
        "intent_code:=1006",
    ):
        assert line in header


def test_a_nifti_field_is_a_vector_image_in_lps(tmp_path: Path) -> None:
    path = tmp_path / "displacement.nii.gz"
    write_transform(FIELD, path)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelIDTypeAsString() == "vector of 32-bit float"
    assert image.GetMetaData("intent_code") == "1007"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), FIELD.data[0].permute(1, 2, 3, 0))


def test_rigid_and_translation_files_of_other_programs_become_affine(tmp_path: Path) -> None:
    rigid = sitk.VersorRigid3DTransform((0.1, 0.2, 0.3, 0.9), (1, 2, 3), (30, 20, 10))
    for number, transform in enumerate((rigid, sitk.TranslationTransform(3, (1, 2, 3)), sitk.Transform())):
        path = tmp_path / f"{number}.tfm"
        sitk.WriteTransform(transform, str(path))
        again = read_transform(path)
        assert isinstance(again, AffineTransform)
        np.testing.assert_allclose(again.transform_points(POINTS), mapped_by_sitk(transform), atol=1e-6)


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def image_file(image: sitk.Image) -> Callable[[Path], None]:
    return lambda path: sitk.WriteImage(image, str(path))


def truncated(transform: Transform) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_transform(transform, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return write


def transform_file(transform: sitk.Transform) -> Callable[[Path], None]:
    return lambda path: sitk.WriteTransform(transform, str(path))


def modeling_field(path: Path) -> None:
    image = FIELD.to_image()
    image.SetMetaData("displacement field type", "modeling")
    sitk.WriteImage(image, str(path))


def field_with_a_hole(path: Path) -> None:
    data = FIELD.data.clone()
    data[0, 1, 2, 3, 4] = torch.nan
    sitk.WriteImage(DisplacementField(data, GRID).to_image(), str(path))


HEADER = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
FLAT = HEADER + "Parameters: 1 0 0 0 1 0 0 0 0 0 0 0\nFixedParameters: 0 0 0\n"

WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing": ("a.h5", lambda _: None, "not found"),
    "missing field": ("a.nrrd", lambda _: None, "not found"),
    "folder": ("a.h5", lambda path: path.mkdir(), "not found"),
    "text rubbish": ("a.tfm", text("rubbish\n"), "not a transform"),
    "empty": ("a.tfm", text(""), "not a transform"),
    "rubbish in HDF5": ("a.h5", text("rubbish"), "not a transform"),
    "unknown suffix": ("a.xyz", text("rubbish"), "not a transform"),
    "rubbish in NIfTI": ("a.nii.gz", text("rubbish"), "not an image"),
    "scalar image": ("a.nrrd", image_file(sitk.Image(4, 4, 4, sitk.sitkFloat32)), "not a displacement field"),
    "color image": ("a.nrrd", image_file(sitk.Image(4, 4, 4, sitk.sitkVectorUInt8)), "not a displacement field"),
    "2D field": ("a.nrrd", image_file(sitk.Image((4, 4), sitk.sitkVectorFloat32, 3)), "2D"),
    "2D transform": ("a.tfm", transform_file(sitk.AffineTransform(2)), "2D"),
    "flat map": ("a.tfm", text(FLAT), "invertible"),
    "truncated text": ("a.tfm", text(HEADER + "Parameters: 1 2 3"), "truncated"),
    "truncated HDF5": ("a.h5", truncated(COMPOSITE), "not a transform"),
    "truncated NRRD": ("a.nrrd", truncated(FIELD), "truncated"),
    "truncated NIfTI": ("a.nii", truncated(FIELD), "truncated"),
    "truncated zipped NIfTI": ("a.nii.gz", truncated(FIELD), "truncated"),
    "truncated MetaImage": ("a.mha", truncated(FIELD), "truncated"),
    "modeling direction": ("a.nrrd", modeling_field, "modeling"),
    "not a number": ("a.nrrd", field_with_a_hole, "not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence_and_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    name, write, reason = WRONG[case]
    path = tmp_path / name
    write(path)
    capfd.readouterr()
    with pytest.raises(InputError, match=reason) as caught:
        read_transform(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("transform", "name", "reason"),
    [
        (AFFINE, "a.nrrd", "only a displacement field"),
        (COMPOSITE, "a.nii.gz", "only a displacement field"),
        (AFFINE, "a.xyz", "must end in"),
    ],
    ids=["affine as field", "composite as field", "unknown suffix"],
)
def test_what_a_file_type_cannot_hold_is_refused_and_nothing_appears(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], transform: Transform, name: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        write_transform(transform, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="MB are needed"):
        write_transform(COMPOSITE, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("a.h5", "a.tfm", "a.nrrd"):
        with pytest.raises(InputError, match="cannot write"):
            write_transform(FIELD, tmp_path / "file" / name)


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_transform(FIELD, path)
    write_transform(AFFINE, path)
    assert isinstance(read_transform(path), AffineTransform)
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
