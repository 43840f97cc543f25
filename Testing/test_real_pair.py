"""The shipped pair of chest CTs of two people: what its registration reaches and what it does not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from strategies import STORAGES, require_cuda, stored

from SAMRegistrationLib import Image, RegistrationResult, read_image, read_labels, register, write_image
from SAMRegistrationLib.evaluation import evaluate
from SAMRegistrationLib.sampling import Interpolation
from Testing.other_device import other_device

SAMPLES = Path(__file__).resolve().parents[1] / "Resources" / "SampleData"
SPACING = 4.0
LUNGS = (2, 3)
TENTH_OF_A_WORKING_VOXEL = 0.2
QUARTER_OF_A_WORKING_VOXEL = 0.5

pytestmark = pytest.mark.slow


def coarser(path: Path) -> Image:
    """A shipped volume in voxels of 4 mm and whole HU, so that a registration takes seconds and files keep it."""
    volume = read_image(path)
    small = volume.resampled(volume.grid.resampled(SPACING))
    return small.with_data(small.data.round())


@pytest.fixture(scope="module")
def volumes() -> tuple[Image, Image]:
    return coarser(SAMPLES / "lidc0405.nii.gz"), coarser(SAMPLES / "lungdx0001.nii.gz")


@pytest.fixture(scope="module")
def result(volumes: tuple[Image, Image]) -> RegistrationResult:
    return register(*volumes)


def difference_at_places(first: RegistrationResult, second: RegistrationResult) -> np.ndarray:
    """Distances in mm between two results at places all over the fixed volume."""
    grid = first.fixed.grid
    places = np.stack(np.meshgrid(*(np.arange(0, n, 6) for n in grid.size), indexing="ij"), axis=-1)
    points = grid.to_world(places.reshape(-1, 3))
    gap = first.transform.transform_points(points) - second.transform.transform_points(points)
    return np.linalg.norm(gap, axis=1)


def largest_difference(first: RegistrationResult, second: RegistrationResult) -> float:
    return float(difference_at_places(first, second).max())


@pytest.mark.cuda
@pytest.mark.parametrize("preset", ["affine", "default", "samconvex-io"])
def test_a_gpu_lays_people_upon_each_other_as_the_cpu_does(volumes: tuple[Image, Image], preset: str) -> None:
    on_gpu, on_cpu = (register(*volumes, preset=preset, device=device) for device in (require_cuda(), "cpu"))
    assert on_gpu.displacement.data.device.type == "cpu"
    # Half precisions differ, vectors are matched to other voxels, and a map between people moves by half of one.
    assert np.median(difference_at_places(on_gpu, on_cpu)) < SPACING


def test_the_lungs_of_two_people_are_laid_upon_each_other(result: RegistrationResult) -> None:
    fixed_labels = read_labels(SAMPLES / "lidc0405_labels.nii.gz")
    moving_labels = read_labels(SAMPLES / "lungdx0001_labels.nii.gz")
    fixed_labels, moving_labels = (
        labels.resampled(volume.grid, Interpolation.NEAREST, default=0)
        for labels, volume in ((fixed_labels, result.fixed), (moving_labels, result.moving))
    )
    found = evaluate(
        result.transform,
        result.fixed,
        result.moving,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
        labels=LUNGS,
    )
    dice = {label["name"]: label["after"]["dice"] for label in found["labels"]["per_label"]}
    assert min(dice.values()) > 0.85, dice
    assert result.report["field"]["folded_percent"] <= 0.1


def test_how_a_real_volume_is_stored_does_not_matter(
    volumes: tuple[Image, Image], result: RegistrationResult
) -> None:
    fixed, moving = (stored(volume, *STORAGES[way]) for volume, way in zip(volumes, (13, 34), strict=True))
    assert largest_difference(result, register(fixed, moving)) < TENTH_OF_A_WORKING_VOXEL


def test_the_file_format_of_real_volumes_does_not_matter(
    volumes: tuple[Image, Image], result: RegistrationResult, tmp_path: Path
) -> None:
    for volume, name in zip(volumes, ("fixed.nrrd", "moving.mha"), strict=True):
        write_image(volume, tmp_path / name)
    again = register(tmp_path / "fixed.nrrd", tmp_path / "moving.mha")
    assert largest_difference(result, again) < TENTH_OF_A_WORKING_VOXEL


@pytest.mark.parametrize("preset", ["default", "samconvex-io"])
def test_a_whole_registration_stays_on_the_device_that_it_was_given(
    volumes: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    """A GPU refuses what this device refuses; recorded kernels and half precision are for a GPU itself to test."""
    chest = volumes[0]
    # Two parts of one chest, 12 cm wide, that have most in common.
    parts = [chest.resampled(chest.grid.cropped((first, 20, 32), (first + 30, 50, 56))) for first in (24, 27)]
    on_cpu = register(*parts, preset=preset, device="cpu")
    monkeypatch.setattr("SAMRegistrationLib.pipeline.resolve_device", torch.device)
    with other_device(monkeypatch) as device:
        there = register(*parts, preset=preset, device=device)
    assert there.displacement.data.device.type == "cpu"
    # Sums in another order match a few vectors to other voxels.
    assert np.median(difference_at_places(there, on_cpu)) < QUARTER_OF_A_WORKING_VOXEL
