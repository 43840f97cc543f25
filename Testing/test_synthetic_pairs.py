"""The benchmark's generated pairs: files, truth and mask from a recipe, and the errors against them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from SAMRegistrationLib import DisplacementField, Grid, Image
from SAMRegistrationLib.benchmark.datasets import Dataset, read_dataset
from SAMRegistrationLib.benchmark.metrics import Judged, evaluate
from SAMRegistrationLib.benchmark.pairs import Pair
from SAMRegistrationLib.benchmark.suite import load_suite
from SAMRegistrationLib.benchmark.synthetic_pairs import AWAY, NEAR
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.image_io import read_image, write_image

BREATH = {"kind": "breathing", "amplitude_mm": -20.0}
ENTRY = {"name": "one", "dataset": "generated", "volume": "chest.nii.gz", "seed": 3, "motion": [BREATH]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trunk of 8 mm voxels that holds two lungs."""
    grid = Grid((40, 30, 36), (8.0,) * 3, (-156.0, -116.0, -140.0))
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)).transpose(
        2, 1, 0, 3
    )
    values = np.where(np.linalg.norm(points[..., :2] / (140, 100), axis=-1) < 1, 40.0, -1000.0)
    for side in (-62, 62):
        values[np.linalg.norm((points - (side, 0, 20)) / (45, 60, 110), axis=-1) < 1] = -850.0
    made = tmp_path_factory.mktemp("volumes")
    write_image(Image(torch.from_numpy(values).float(), grid, "int16", "CT"), made / "chest.nii.gz")
    return made


def pair_of(folder: Path, **changes: Any) -> Pair:
    return read_dataset(Dataset("generated", {"kind": "synthetic"}, [{**ENTRY, **changes}], {}, folder))[0]


@pytest.fixture(scope="module")
def prepared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(folder, moving=[{"kind": "noise", "sigma_hu": 10.0}]).prepared(
        tmp_path_factory.mktemp("inputs")
    )


def scores(pair: Pair, field: DisplacementField) -> dict[str, float]:
    return {s.metric: s.value or 0.0 for s in evaluate(Judged(pair, field), ["truth", "sliding"])}


def test_the_true_field_has_no_error(prepared: Pair) -> None:
    assert prepared.truth is not None and prepared.truth.field is not None
    grid = read_image(prepared.fixed).grid
    points = grid.to_world(np.indices(grid.shape).reshape(3, -1)[::-1].T)
    truth = prepared.truth.transform_points(points) - points
    field = DisplacementField(torch.from_numpy(truth.T.reshape(1, 3, *grid.shape)).float(), grid)
    found = scores(prepared, field)
    assert max(found.values()) < 1e-3
    assert set(found) >= {"error_mean_mm", "error_p95_mm", "sliding_error_mean_mm", "sliding_error_p95_mm"}


def test_no_field_has_the_motion_as_its_error(prepared: Pair) -> None:
    found = scores(prepared, DisplacementField.zero(read_image(prepared.fixed).grid))
    assert 2 < found["error_mean_mm"] < 20
    assert 15 < found["error_max_mm"] < 32
    assert 3 < found["sliding_error_mean_mm"] < found["error_max_mm"]


def test_the_mask_is_the_body_with_the_neighborhood_of_the_wall_marked(prepared: Pair) -> None:
    assert prepared.truth is not None and isinstance(prepared.truth.mask, Path)
    mask, fixed = read_image(prepared.truth.mask).data, read_image(prepared.fixed).data
    assert set(mask.unique().tolist()) == {0.0, float(AWAY), float(NEAR)}
    assert float((mask[fixed == 40] > 0).float().mean()) > 0.98
    assert 0.05 < float((mask == NEAR).sum() / (mask > 0).sum()) < 0.6


def test_a_recipe_gives_the_same_pair_again_and_another_seed_another(folder: Path, tmp_path: Path) -> None:
    motion = [{"kind": "elastic", "magnitude_mm": 6.0}]
    made = [
        pair_of(folder, seed=seed, motion=motion).prepared(tmp_path / str(number))
        for number, seed in enumerate((1, 1, 2))
    ]
    first, again, other = (read_image(pair.moving).data for pair in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_prepared_pair_is_read_again_and_not_made_again(folder: Path, tmp_path: Path) -> None:
    pair = pair_of(folder, motion=[{"kind": "rotation", "degrees": 10.0}])
    first = pair.prepared(tmp_path)
    written = first.moving.stat().st_mtime_ns
    assert pair.prepared(tmp_path) == replace(first)
    assert first.moving.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volume": "missing.nii.gz"}, "not there"),
        ({"motion": [{"kind": "teleportation"}]}, "unknown step"),
        ({"motion": [{"kind": "rotation", "radians": 1.0}]}, "no option 'radians'"),
        ({"motion": []}, "no motion"),
        ({"moving": [{"kind": "breathing"}]}, "unknown step"),
    ],
)
def test_a_wrong_entry_is_refused_before_any_work(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_of(folder, **changes)


@pytest.mark.data
def test_the_shipped_suite_can_be_read(data_dir: Path) -> None:
    pairs = load_suite("known_truth", data_dir).pairs()
    families = {pair.family for pair in pairs}
    assert {"breathing", "large rotation", "cropped field of view", "metal"} <= families
    assert all(pair.preparation is not None for pair in pairs)
