"""Input that cannot be used ends with exit status 3 (4 for memory), one clear sentence and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_line import refused
from phantoms import centered_grid, deformed, phantom_hu, phantom_pair
from strategies import noise_image, world_positions
from test_io_dicom import source_volume, write_series

from SAMRegistrationLib import AffineTransform, Grid, Image, register, write_image
from SAMRegistrationLib.cli import main
from SAMRegistrationLib.errors import InputError, NotEnoughMemoryError
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.memory_estimate import BYTES_PER_WORKING_VOXEL, working_memory
from SAMRegistrationLib.presets import load_preset, preset_names, usable_preset_names
from SAMRegistrationLib.stages import DEFORMABLE

PAIR = phantom_pair(6.0)
FREE_MEMORY = "SAMRegistrationLib.features.memory.available_memory"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a pair with nothing wrong."""
    folder = tmp_path_factory.mktemp("good")
    for name, image in {"fixed": PAIR.fixed, "moving": PAIR.moving}.items():
        write_image(image, folder / f"{name}.nii.gz")
    return folder / "fixed.nii.gz", folder / "moving.nii.gz"


def arguments(fixed: Path, moving: Path, folder: Path, *more: str | Path) -> list[str | Path]:
    return ["register", fixed, moving, "-o", folder / "result", "--preset", "rigid", "--model", "mind", *more]


def missing(path: Path) -> Path:
    return path.with_name("nowhere.nii.gz")


def truncated(path: Path) -> Path:
    write_image(PAIR.moving, path)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def not_an_image(path: Path) -> Path:
    path.write_text("a letter")
    return path


def unknown_type(path: Path) -> Path:
    path = path.with_suffix(".docx")
    path.write_text("a letter")
    return path


def plane(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(400.0).reshape(20, 20)), str(path))
    return path


def four_dimensional(path: Path) -> Path:
    path = path.with_name("series.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([PAIR.moving.to_sitk(), PAIR.moving.to_sitk()]), str(path))
    return path


def with_nan(path: Path) -> Path:
    values = PAIR.moving.data.clone()
    values[3, 4, 5] = torch.nan
    write_image(replace(PAIR.moving, data=values, pixel_type="float32"), path)
    return path


def constant(path: Path) -> Path:
    write_image(PAIR.moving.with_data(torch.full_like(PAIR.moving.data, 7)), path)
    return path


DICOM_GRID = Grid((9, 8, 6), (0.8, 0.9, 2.5), (-100.0, 50.0, -300.0))


def two_series(path: Path) -> Path:
    write_series(source_volume(DICOM_GRID), path, series="1.2.3.1", description="chest")
    write_series(source_volume(DICOM_GRID, 1), path, series="1.2.3.2", description="scout")
    return path


def missing_slice(path: Path) -> Path:
    write_series(source_volume(DICOM_GRID), path, left_out=(3,))
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


class Case(NamedTuple):
    """A file that is no volume, and words of the sentence that says so."""

    make: Callable[[Path], Path]
    words: tuple[str, ...]
    name: str = "volume.mha"


CASES = {
    "missing": Case(missing, ("not found",)),
    "truncated": Case(truncated, ("truncated or damaged",)),
    "text": Case(not_an_image, ("not an image that can be read",)),
    "unknown type": Case(unknown_type, (".nrrd",)),
    "2D": Case(plane, ("2D",)),
    "4D": Case(four_dimensional, ("4D",)),
    "NaN": Case(with_nan, ("NaN",)),
    "constant": Case(constant, ("constant",)),
    "two series": Case(two_series, ("chest", "scout"), "dicom"),
    "missing slice": Case(missing_slice, ("misses a slice", "5 mm"), "dicom"),
    "empty folder": Case(empty_folder, ("DICOM",), "dicom"),
}


@pytest.mark.parametrize("place", ["fixed", "moving"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_file_that_is_no_volume_is_refused_by_name(
    case: Case, place: str, good: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = case.make(tmp_path / case.name)
    pair = (bad, good[1]) if place == "fixed" else (good[0], bad)
    sentence = refused(arguments(*pair, tmp_path), 3, tmp_path, capsys)
    assert str(bad) in sentence
    assert all(word in sentence for word in case.words), sentence


def mask_file(path: Path, offset: tuple[float, float, float], name: str = "mask.nrrd") -> Path:
    grid = PAIR.fixed.grid
    moved = replace(grid, origin=tuple(np.add(grid.origin, offset)))
    write_image(Image((PAIR.fixed.data > -500).float(), moved, "uint8"), path / name)
    return path / name


@pytest.mark.parametrize("option", ["--fixed-mask", "--moving-mask"])
def test_a_mask_beside_its_volume_is_refused(
    option: str, good: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = mask_file(tmp_path, (900.0, 0.0, 0.0))
    assert "does not overlap" in refused(arguments(*good, tmp_path, option, mask), 3, tmp_path, capsys)
    with pytest.raises(InputError, match="does not overlap"):
        shifted = Image.from_sitk(sitk.ReadImage(str(mask)))
        register(PAIR.fixed, PAIR.moving, preset="rigid", model="mind", fixed_mask=shifted)


def test_an_empty_mask_is_refused(
    good: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = PAIR.fixed.with_data(torch.zeros_like(PAIR.fixed.data))
    write_image(nothing, tmp_path / "mask.nrrd")
    refused(arguments(*good, tmp_path, "--fixed-mask", tmp_path / "mask.nrrd"), 3, tmp_path, capsys)
    with pytest.raises(InputError, match="empty"):
        register(PAIR.fixed, PAIR.moving, preset="rigid", model="mind", fixed_mask=nothing)


def test_a_mask_on_an_overlapping_grid_is_used_with_a_warning(
    good: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = mask_file(tmp_path, (9.0, 4.0, 0.0))
    assert main([str(a) for a in arguments(*good, tmp_path, "--fixed-mask", mask)]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "another grid" in " ".join(printed.out.split())
    warnings = json.loads((tmp_path / "result" / "report.json").read_text())["warnings"]
    assert len(warnings) == 1 and str(mask) in warnings[0]


def test_labels_beside_their_volume_are_refused(
    good: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = mask_file(tmp_path, (0.0, 900.0, 0.0))
    transform = tmp_path / "start.tfm"
    sitk.WriteTransform(sitk.TranslationTransform(3), str(transform))
    evaluation = ["evaluate", "-t", transform, "--fixed", good[0], "--moving", good[1]]
    evaluation += ["--fixed-labels", labels, "--moving-labels", labels]
    assert "does not overlap" in refused(evaluation, 3, tmp_path, capsys)


def wrong_transform(path: Path) -> Path:
    sitk.WriteTransform(sitk.Euler2DTransform(), str(path / "start.tfm"))
    return path / "start.tfm"


def image_as_transform(path: Path) -> Path:
    write_image(PAIR.moving, path / "image.nrrd")
    return path / "image.nrrd"


def text_as_transform(path: Path) -> Path:
    (path / "start.tfm").write_text("left a bit")
    return path / "start.tfm"


def far_away(path: Path) -> Path:
    sitk.WriteTransform(sitk.TranslationTransform(3, (5000.0, 0.0, 0.0)), str(path / "start.tfm"))
    return path / "start.tfm"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_transform, "2D"),
        (image_as_transform, "not a displacement field"),
        (text_as_transform, "not a transform"),
        (lambda path: path / "none.h5", "not found"),
        (far_away, "do not overlap"),
    ],
    ids=["2D", "image", "text", "missing", "far away"],
)
def test_a_start_that_cannot_be_used_is_refused(
    make: Callable[[Path], Path],
    words: str,
    good: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = make(tmp_path)
    assert words in refused(arguments(*good, tmp_path, "--initial", start), 3, tmp_path, capsys)


def test_volumes_far_apart_are_aligned_by_what_they_show() -> None:
    far = phantom_pair(6.0, offset=(700.0, -400.0, 1200.0))
    found = register(far.fixed, far.moving, preset="rigid", model="mind")
    assert far.error(found.transform.transform_points).mean() < 6


def test_a_small_piece_of_the_body_is_found_in_it() -> None:
    grid = centered_grid(5.0, (40.0, 40.0, 40.0))
    piece = volume(phantom_hu(world_positions(grid)), grid)
    found = register(PAIR.fixed, piece, preset="rigid", model="mind")
    inside = np.random.default_rng(0).uniform(-15, 15, (200, 3))
    error = np.linalg.norm(found.transform.transform_points(inside) - deformed(inside), axis=1)
    assert error.mean() < 5


def volume(values: np.ndarray | torch.Tensor, grid: Grid) -> Image:
    return Image(torch.as_tensor(values).float(), grid, "int16", "CT")


def unrelated() -> dict[str, tuple[Image, Image]]:
    """Pairs in which there is nothing to find, far apart and side by side."""
    grid = centered_grid(6.0)
    distant = centered_grid(6.0, center=(900.0, 0.0, 0.0))
    speck = np.full(distant.shape, -1000.0)
    speck[4, 4, 4] = 40.0
    return {
        "noise": (noise_image(grid, 0), noise_image(distant, 1)),
        "body and noise": (PAIR.fixed, noise_image(distant, 2)),
        "body and speck": (PAIR.fixed, volume(speck, distant)),
        "body and air": (PAIR.fixed, volume(-1000 + (speck > 0) * 5.0, distant)),
        "speck and speck": (volume(speck, grid), volume(speck, distant)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("pair", unrelated().values(), ids=unrelated().keys())
def test_volumes_with_nothing_in_common_are_refused_or_come_with_a_warning(pair: tuple[Image, Image]) -> None:
    try:
        found = register(*pair, preset="message-passing", model="mind")
    except InputError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert torch.isfinite(found.displacement.data).all()
        assert any("check the alignment" in sentence for sentence in found.report["warnings"])


def deforms_without_weights(preset: str) -> bool:
    return preset not in ("rigid", "affine") and not load_preset(preset).networks


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in preset_names() if deforms_without_weights(name)])
def test_a_thin_slab_is_registered_with_every_preset(preset: str) -> None:
    """Levels and strides have little to divide; about 25 mm are left, of which the body fills all slices."""
    slab = PAIR.fixed.resampled(PAIR.fixed.grid.cropped((0, 0, 10), (*PAIR.fixed.grid.size[:2], 14)))
    found = register(slab, PAIR.moving, preset=preset, model="mind")
    assert found.warped.grid == slab.grid
    assert torch.isfinite(found.displacement.data).all()
    assert found.report["field"]["folded_percent"] <= 0.1


def test_an_output_that_is_a_file_is_refused_at_once(
    good: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("SAMRegistrationLib.chain.run_stage", lambda *_: pytest.fail("work was started"))
    (tmp_path / "result").write_text("a file")
    assert "not a folder" in refused(arguments(*good, tmp_path), 3, tmp_path, capsys)


def test_an_output_without_permission_is_refused_at_once(
    good: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("SAMRegistrationLib.chain.run_stage", lambda *_: pytest.fail("work was started"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "no permission" in refused(arguments(*good, tmp_path), 3, tmp_path, capsys)


def test_a_full_disk_is_refused_with_what_is_needed(
    good: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    sentence = refused(arguments(*good, tmp_path), 3, tmp_path, capsys)
    assert "50 MB are needed and 1 MB are free" in sentence


def test_a_device_that_is_not_there_is_refused(
    good: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(arguments(*good, tmp_path, "--device", "cuda:63"), 3, tmp_path, capsys)
    assert "cuda:63 is not there" in sentence


def test_too_little_memory_is_told_before_the_work_with_what_is_needed_and_a_lighter_preset(
    good: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("SAMRegistrationLib.chain.run_stage", lambda *_: pytest.fail("work was started"))
    monkeypatch.setattr(FREE_MEMORY, lambda _: 100_000_000)
    for preset in usable_preset_names():
        sentence = refused(arguments(*good, tmp_path, "--preset", preset), 4, tmp_path, capsys)
        assert f'"{preset}"' in sentence and "GB of memory on cpu, 0.1 GB are free" in sentence
        lighter = load_preset(preset).lighter
        assert (f'take the preset "{lighter}"' in sentence) == (lighter is not None)


def test_a_result_too_large_for_the_memory_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("SAMRegistrationLib.chain.run_stage", lambda *_: pytest.fail("work was started"))
    fine = PAIR.fixed.resampled(PAIR.fixed.grid.resampled(0.7))
    monkeypatch.setattr(FREE_MEMORY, lambda _: 400_000_000)
    with pytest.raises(NotEnoughMemoryError, match=r"the result on 1\d\d x"):
        register(fine, PAIR.moving, preset="rigid", model="mind")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("itk::ERROR: Failed to allocate memory for image."),
    ],
    ids=["Python", "CUDA", "CPU", "ITK"],
)
def test_memory_that_runs_out_on_the_way_is_told_with_a_lighter_preset(
    error: Exception,
    good: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("SAMRegistrationLib.chain.run_stage", fail)
    sentence = refused(arguments(*good, tmp_path, "--preset", "default"), 4, tmp_path, capsys)
    assert f'take the preset "{load_preset("default").lighter}"' in sentence


def test_torch_says_that_memory_ran_out_as_expected() -> None:
    """The words that the library looks for, since torch has no class for it on a CPU."""
    with pytest.raises(RuntimeError, match="allocate memory"):
        torch.empty(10**16)


def test_the_memory_of_every_stage_is_known() -> None:
    assert {"align", *DEFORMABLE} <= set(BYTES_PER_WORKING_VOXEL)


def test_the_default_preset_fits_the_promised_memory() -> None:
    """The issue's limit: 6 GB for 192 x 160 x 256 working voxels."""
    needed = working_memory(load_preset("default"), MindExtractor(), 192 * 160 * 256)
    assert 0.5e9 < needed < 6e9


def test_a_singular_initial_matrix_is_refused() -> None:
    with pytest.raises(InputError, match="initial transform cannot be used"):
        register(PAIR.fixed, PAIR.moving, model="mind", initial=np.diag([1.0, 1.0, 0.0, 1.0]))


def test_an_initial_transform_with_partial_overlap_is_accepted() -> None:
    start = AffineTransform.translation((60.0, 0.0, 0.0))
    found = register(PAIR.fixed, PAIR.moving, preset="message-passing", model="mind", initial=start)
    assert torch.isfinite(found.displacement.data).all()
