"""From two volumes to a result: what is recovered, what it does not depend on, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from phantoms import PhantomPair, centered_grid, phantom_pair
from strategies import STORAGES, require_cuda, rotation, stored, waves

from SAMRegistrationLib import AffineTransform, Image, RegistrationResult, register, write_image
from SAMRegistrationLib.errors import Cancelled, InputError, RegistrationWarning, UsageError
from SAMRegistrationLib.inputs import as_mask, as_transform, as_volume
from SAMRegistrationLib.metrics.similarity import normalized_cross_correlation
from SAMRegistrationLib.pipeline import OUTPUTS, working_grid

WORKING_VOXEL = 2.0
TENTH_OF_A_VOXEL = 0.2


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(2.5)


@pytest.fixture(scope="module")
def coarse_pair() -> PhantomPair:
    return phantom_pair(4.0)


@pytest.fixture(scope="module")
def result(pair: PhantomPair) -> RegistrationResult:
    return register(pair.fixed, pair.moving, model="mind")


@pytest.fixture(scope="module")
def coarse_result(coarse_pair: PhantomPair) -> RegistrationResult:
    return register(coarse_pair.fixed, coarse_pair.moving, model="mind")


@pytest.fixture(scope="module")
def saved(result: RegistrationResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "new" / "folder"
    result.save(folder)
    return folder


def difference(pair: PhantomPair, first: RegistrationResult, second: RegistrationResult) -> float:
    """The largest distance in mm between two results inside the body."""
    points = pair.inside()
    gap = first.transform.transform_points(points) - second.transform.transform_points(points)
    return float(np.linalg.norm(gap, axis=1).max())


def test_a_smooth_deformation_and_an_offset_are_recovered_to_half_a_working_voxel(
    pair: PhantomPair, result: RegistrationResult
) -> None:
    assert pair.error(lambda points: points).mean() > 20
    assert pair.error(result.transform.transform_points).mean() < WORKING_VOXEL / 2
    assert pair.error(result.displacement.transform_points).mean() < WORKING_VOXEL / 2


def test_the_warped_volume_resembles_the_fixed_one(pair: PhantomPair, result: RegistrationResult) -> None:
    assert result.warped.grid == pair.fixed.grid
    before = normalized_cross_correlation(pair.fixed.data, pair.moving.resampled(pair.fixed.grid).data)
    after = normalized_cross_correlation(pair.fixed.data, result.warped.data)
    assert before < 0.9 < 0.99 < after


def test_the_same_seed_gives_the_same_result(coarse_pair: PhantomPair, coarse_result: RegistrationResult) -> None:
    again = register(coarse_pair.fixed, coarse_pair.moving, model="mind")
    assert torch.equal(again.displacement.data, coarse_result.displacement.data)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_the_file_format_does_not_matter(
    coarse_pair: PhantomPair, coarse_result: RegistrationResult, tmp_path: Path, suffix: str
) -> None:
    paths = tmp_path / f"fixed{suffix}", tmp_path / f"moving{suffix}"
    for image, path in zip((coarse_pair.fixed, coarse_pair.moving), paths, strict=True):
        write_image(image, path)
    from_files = register(*paths, model="mind")
    assert difference(coarse_pair, from_files, coarse_result) < TENTH_OF_A_VOXEL


@pytest.mark.slow
@pytest.mark.parametrize(("fixed_way", "moving_way"), [(5, 0), (0, 27), (38, 14), (47, 9)])
def test_how_a_volume_is_stored_does_not_matter(
    coarse_pair: PhantomPair, coarse_result: RegistrationResult, fixed_way: int, moving_way: int
) -> None:
    fixed = stored(coarse_pair.fixed, *STORAGES[fixed_way])
    moving = stored(coarse_pair.moving, *STORAGES[moving_way])
    again = register(fixed, moving, model="mind")
    assert again.displacement.grid == fixed.grid
    assert difference(coarse_pair, again, coarse_result) < TENTH_OF_A_VOXEL


def test_simpleitk_images_are_taken_as_they_are(coarse_pair: PhantomPair) -> None:
    images = [replaced.to_sitk() for replaced in (coarse_pair.fixed, coarse_pair.moving)]
    from_sitk = register(*images, preset="rigid", model="mind")
    ours = register(coarse_pair.fixed, coarse_pair.moving, preset="rigid", model="mind")
    assert difference(coarse_pair, from_sitk, ours) < TENTH_OF_A_VOXEL


@pytest.mark.slow
def test_oblique_grids_of_other_size_and_spacing_are_registered_as_well() -> None:
    offset = (30.0, 10.0, -80.0)
    fixed_grid = centered_grid((3.0, 2.5, 4.0), angles=(0.2, -0.3, 0.1))
    moving_grid = centered_grid((2.0, 3.0, 3.5), (150, 120, 130), offset, (-0.1, 0.15, 0.4))
    pair = phantom_pair(offset=offset, fixed_grid=fixed_grid, moving_grid=moving_grid)
    found = register(pair.fixed, pair.moving, model="mind")
    assert found.warped.grid == fixed_grid
    assert pair.error(found.transform.transform_points).mean() < 1.5


def rigid_start() -> AffineTransform:
    """The rigid part of the phantoms' truth."""
    return AffineTransform.about_center(rotation((0.06, -0.04, 0.09)), (0, 0, 0), (14, -9, 20))


def test_an_initial_transform_replaces_the_search(coarse_pair: PhantomPair) -> None:
    start = rigid_start()
    found = register(
        coarse_pair.fixed, coarse_pair.moving, preset="message-passing", model="mind", initial=start.matrix
    )
    assert found.report["details"]["align"] == {"model": "given"}
    assert found.report["inputs"]["initial"] == {"path": None, "type": "ndarray"}
    far = np.array([[500.0, 400.0, 300.0]])
    np.testing.assert_allclose(found.transform.transform_points(far), start.transform_points(far))
    given_alone = coarse_pair.error(start.transform_points).mean()
    assert coarse_pair.error(found.transform.transform_points).mean() < 0.7 * given_alone


def test_the_linear_presets_improve_an_initial_transform(coarse_pair: PhantomPair) -> None:
    start = AffineTransform.translation((4, 5, -3)).compose(rigid_start())
    found = register(coarse_pair.fixed, coarse_pair.moving, preset="rigid", model="mind", initial=start)
    before, after = (coarse_pair.error(map_.transform_points).mean() for map_ in (start, found.transform))
    assert after < 0.7 * before


def test_every_form_of_a_transform_is_accepted(tmp_path: Path) -> None:
    start, points = rigid_start(), np.random.default_rng(0).uniform(-90, 90, (20, 3))
    path = tmp_path / "start.tfm"
    sitk.WriteTransform(start.to_sitk(), str(path))
    for form in (start, start.matrix, start.to_sitk(), path, str(path)):
        taken = as_transform(form)
        assert taken is not None
        np.testing.assert_allclose(taken.transform_points(points), start.transform_points(points), atol=1e-9)
    assert as_transform(None) is None


def body(image: Image) -> Image:
    return image.with_data((image.data > -500).float())


def test_masks_restrict_what_is_registered(coarse_pair: PhantomPair) -> None:
    """Junk fills a corner of both volumes; without masks it leads astray, with them it is not looked at."""
    junk = [image.data.clone() for image in (coarse_pair.fixed, coarse_pair.moving)]
    masks = []
    for seed, (values, image) in enumerate(zip(junk, (coarse_pair.fixed, coarse_pair.moving), strict=True)):
        upper = slice(values.shape[0] * 2 // 3, None)
        values[upper] = waves(image.grid, seed, 30.0)[0][upper] * 900
        clean = torch.ones_like(values)
        clean[upper] = 0
        masks.append(image.with_data(clean))
    found = register(
        coarse_pair.fixed.with_data(junk[0]),
        coarse_pair.moving.with_data(junk[1]),
        preset="rigid",
        model="mind",
        fixed_mask=masks[0],
        moving_mask=masks[1],
    )
    points = coarse_pair.inside()
    points = points[points[:, 2] < 15]
    error = np.linalg.norm(found.transform.transform_points(points) - coarse_pair.truth(points), axis=1)
    assert error.mean() < 5
    assert set(found.report["inputs"]) == {"fixed", "moving", "fixed_mask", "moving_mask"}


def test_a_mask_on_another_grid_is_resampled_with_a_warning_in_the_report(
    coarse_pair: PhantomPair, tmp_path: Path
) -> None:
    mask = body(coarse_pair.fixed.resampled(coarse_pair.fixed.grid.resampled(6.0)))
    write_image(mask, tmp_path / "mask.nrrd")
    for given in (mask, mask.to_sitk(), tmp_path / "mask.nrrd"):
        found = register(coarse_pair.fixed, coarse_pair.moving, preset="rigid", model="mind", fixed_mask=given)
        assert sum("another grid" in sentence for sentence in found.report["warnings"]) == 1


def test_a_mask_has_the_grid_of_its_volume(coarse_pair: PhantomPair) -> None:
    inside = as_mask(body(coarse_pair.fixed), coarse_pair.fixed)
    assert inside is not None and torch.equal(inside, coarse_pair.fixed.data > -500)
    with pytest.warns(RegistrationWarning, match="another grid"):
        other = as_mask(body(coarse_pair.fixed).to_sitk()[2:, :, :], coarse_pair.fixed)
    assert other is not None and torch.equal(other[:, :, 2:], inside[:, :, 2:]) and not other[:, :, :2].any()


def test_all_four_files_are_written_and_nothing_else(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted(OUTPUTS)


def test_simpleitk_warps_with_the_written_transform_as_the_written_volume_shows(
    saved: Path, pair: PhantomPair
) -> None:
    warped = sitk.ReadImage(str(saved / "warped.nii.gz"))
    assert warped.GetPixelID() == sitk.sitkInt16
    transform = sitk.ReadTransform(str(saved / "transform.h5"))
    expected = sitk.Resample(
        pair.moving.to_sitk("float32"), pair.fixed.to_sitk(), transform, sitk.sitkLinear, -1024.0
    )
    ours, theirs = sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(expected)
    # The outermost half voxel of the moving volume is inside for one and outside for the other by rounding.
    both = (ours > -1024) & (theirs > -1024)
    assert both.mean() > 0.9
    assert (both == ((ours > -1024) | (theirs > -1024))).mean() > 0.999
    assert np.abs(ours[both] - theirs[both]).max() < 1.5


def test_the_written_transform_and_field_agree(saved: Path, pair: PhantomPair) -> None:
    transform = sitk.ReadTransform(str(saved / "transform.h5"))
    field = sitk.ReadImage(str(saved / "displacement.nii.gz"))
    np.testing.assert_allclose(field.GetOrigin(), pair.fixed.grid.origin, atol=1e-4)
    random = np.random.default_rng(0)
    for index in random.integers(0, pair.fixed.grid.size, (200, 3)).tolist():
        point = np.array(field.TransformIndexToPhysicalPoint(index))
        moved = transform.TransformPoint(point.tolist())
        np.testing.assert_allclose(point + field.GetPixel(index), moved, atol=1e-2)


def test_the_warped_volume_has_the_moving_volumes_pixel_type(coarse_pair: PhantomPair, tmp_path: Path) -> None:
    moving = Image(coarse_pair.moving.data, coarse_pair.moving.grid, "float32", "CT")
    register(coarse_pair.fixed, moving, preset="rigid", model="mind").save(tmp_path)
    assert sitk.ReadImage(str(tmp_path / "warped.nii.gz")).GetPixelID() == sitk.sitkFloat32


def test_the_report_says_what_the_contract_promises(saved: Path, pair: PhantomPair) -> None:
    report = json.loads((saved / "report.json").read_text())
    assert report["schema_version"] == 1
    assert report["preset"] == "default"
    assert report["settings"]["features"] == "mind"
    assert report["machine"]["device"] == "cpu"
    assert all(len(report["inputs"][name]["sha256"]) == 64 for name in ("fixed", "moving"))
    assert report["inputs"]["fixed"]["size"] == list(pair.fixed.grid.size)
    names = [stage["name"] for stage in report["stages"]]
    assert names[0] == "prepare" and names[-1] == "finish" and "align" in names
    assert all(stage["seconds"] >= 0 for stage in report["stages"])
    assert report["peak_memory_mib"] > 0
    similarity = report["similarity"]
    assert (
        similarity["after"]["normalized_cross_correlation"] > similarity["before"]["normalized_cross_correlation"]
    )
    assert report["field"]["folded_percent"] <= 0.1
    assert report["warnings"] == []


def test_progress_never_goes_back_and_ends_with_everything_done(coarse_pair: PhantomPair) -> None:
    heard: list[tuple[str, float]] = []
    register(
        coarse_pair.fixed,
        coarse_pair.moving,
        model="mind",
        progress=lambda stage, fraction: heard.append((stage, fraction)),
    )
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0 and fractions[-1] == pytest.approx(1)
    assert heard[0][0] == "prepare" and len({stage for stage, _ in heard}) >= 4
    assert len(heard) > 20, "a stage of many iterations tells about them"


def stop_at(wanted: str) -> Callable[[str, float], None]:
    def progress(stage: str, _: float) -> None:
        if stage == wanted:
            raise Cancelled("cancelled; nothing was written")

    return progress


@pytest.mark.parametrize("stage", ["prepare", "align", "message_passing", "finish"])
def test_a_cancellation_stops_the_work(coarse_pair: PhantomPair, stage: str) -> None:
    with pytest.raises(Cancelled):
        register(
            coarse_pair.fixed,
            coarse_pair.moving,
            preset="message-passing",
            model="mind",
            progress=stop_at(stage),
        )


def test_the_working_grid_covers_the_volume_in_isotropic_voxels() -> None:
    grid = centered_grid((3.0, 2.5, 4.0), angles=(0.2, -0.3, 0.1))
    work = working_grid(grid, 2.0)
    assert all(n % 16 == 0 for n in work.size)
    np.testing.assert_allclose(work.spacing, 2.0, rtol=0.35)
    voxels = work.to_voxel(grid.corners())
    assert (voxels > -0.5 - 1e-3).all() and (voxels < np.array(work.size) - 0.5 + 1e-3).all()


@pytest.mark.cuda
def test_the_gpu_gives_the_result_of_the_cpu(coarse_pair: PhantomPair, coarse_result: RegistrationResult) -> None:
    on_gpu = register(coarse_pair.fixed, coarse_pair.moving, model="mind", device=require_cuda())
    assert on_gpu.displacement.data.device.type == "cpu"
    assert difference(coarse_pair, on_gpu, coarse_result) < TENTH_OF_A_VOXEL


@pytest.mark.parametrize("given", [3, b"x", [1, 2]])
def test_other_types_than_volumes_and_transforms_are_wrong_use(given: object) -> None:
    with pytest.raises(UsageError, match="fixed volume must be"):
        as_volume(given, "fixed")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="initial transform must be"):
        as_transform(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        np.eye(3),
        np.diag([1.0, 1, 0, 1]),
        np.full((4, 4), np.nan),
        sitk.Euler2DTransform(),
        sitk.AffineTransform(np.diag([1.0, 0, 1]).ravel().tolist(), [0, 0, 0]),
    ],
    ids=["3x3", "singular", "nan", "2D", "singular-itk"],
)
def test_transforms_in_memory_that_cannot_be_used_are_refused(bad: object) -> None:
    with pytest.raises(InputError):
        as_transform(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (sitk.Image(9, 9, sitk.sitkInt16), "3D"),
        (sitk.Image([9, 9, 9, 2], sitk.sitkInt16), "3D"),
        (sitk.Image([9, 9, 9], sitk.sitkVectorFloat32, 3), "one value per voxel"),
        (sitk.Image([9, 9, 9], sitk.sitkComplexFloat32), "one value per voxel"),
        (sitk.Image([9, 9, 9], sitk.sitkInt16), "constant"),
        (sitk.GetImageFromArray(np.arange(200.0).reshape(2, 10, 10)), "thin"),
        (sitk.GetImageFromArray(np.full((9, 9, 9), np.nan)), "not finite"),
    ],
    ids=["2D", "4D", "vector", "complex", "constant", "thin", "nan"],
)
def test_images_in_memory_that_hold_no_volume_are_refused(image: sitk.Image, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        as_volume(image, "fixed")
