"""The evaluation measures what it says, with features whose matches are known."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.training.command import add_train_arguments, run_train
from SAMRegistrationLib.training.evaluation import (
    WAYS,
    draw_pairs,
    evaluate_features,
    format_evaluation,
    self_matching,
    subject_matching,
)
from SAMRegistrationLib.training.evaluation_views import BODY_HU, LARGEST_DISPLACEMENT, changed_views
from SAMRegistrationLib.training.manifest import Volume, read_excluded_names, read_manifest
from SAMRegistrationLib.training.voxel_search import nearest_voxels
from Testing.training_volumes import write_manifest


class WorldExtractor:
    """Encodes the world position of every voxel, plus a shift, whatever the image shows."""

    name = "world"
    spacing = None

    def __init__(self, shift_of: dict[float, float] | None = None, with_coarse_map: bool = False) -> None:
        self.shift_of = shift_of or {}
        self.with_coarse_map = with_coarse_map
        self.waves = torch.randn((48, 3), generator=torch.Generator().manual_seed(0)) / 10

    def extract(self, image: Image) -> Features:
        z, y, x = np.meshgrid(*[np.arange(size) for size in image.grid.shape], indexing="ij")
        world = image.grid.to_world(np.stack([x, y, z], axis=-1))
        world = world + self.shift_of.get(float(image.grid.origin[0]), 0.0)
        phase = torch.from_numpy(world).float() @ self.waves.T
        vectors = torch.cat([phase.sin(), phase.cos()], dim=-1) / 48**0.5
        fine = FeatureMap(vectors.permute(3, 0, 1, 2)[None], image.grid)
        return Features(fine, fine if self.with_coarse_map else None)

    def extract_tensor(self, volume: Tensor) -> tuple[Tensor, None]:
        raise NotImplementedError

    def feature_grids(self, grid: Grid) -> tuple[Grid, None]:
        return grid, None


WAYS_WITHOUT_COARSE_MAP = WAYS[:2]
"""A patient can only be aligned by features that find places all over a body."""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[Volume]:
    return read_manifest(write_manifest(tmp_path_factory.mktemp("volumes"), 4))


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("SAMRegistrationLib.training.evaluation.POINTS_PER_VOLUME", 120)
    monkeypatch.setattr("SAMRegistrationLib.training.evaluation.POINTS_PER_STRUCTURE", 40)


def test_perfect_features_find_every_structure_of_the_same_volume(volumes):
    result = subject_matching(WorldExtractor(), [(volumes[0], volumes[0])])
    assert result["nearest"]["same_structure"] == 1.0
    assert result["structural"]["same_structure"] > 0.98
    for way in WAYS_WITHOUT_COARSE_MAP:
        assert result[way]["center_mm"] < 1.5
        assert result[way]["center_by_level_mm"] == result[way]["center_mm"]
        assert set(result[way]["structures"]) == {"test 1", "test 2", "test 3"}


def test_a_tube_that_a_contour_cuts_short_is_found_by_level_where_its_center_is_not(
    volumes, tmp_path, monkeypatch
):
    labels = sitk.ReadImage(str(volumes[0].labels[0].path))
    whole = np.zeros(sitk.GetArrayFromImage(labels).shape, np.uint8)
    whole[4:24, 12:16, 12:16] = 2
    short = whole.copy()
    short[:16] = 0
    pair = []
    for name, values in (("short", short), ("whole", whole)):
        drawn = sitk.GetImageFromArray(values)
        drawn.CopyInformation(labels)
        path = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(drawn, str(path))
        pair.append(replace(volumes[0], labels=(replace(volumes[0].labels[0], path=path),)))
    monkeypatch.setattr("SAMRegistrationLib.training.evaluation.OPEN_ENDED_LABELS", {"test": (2,)})
    result = subject_matching(WorldExtractor(), [(pair[0], pair[1])])
    assert result["nearest"]["center_mm"] > 15
    # Which of a level's few points count is a matter of rounding, and their median jumps by half a voxel or more.
    assert result["nearest"]["center_by_level_mm"] < 3


@pytest.mark.slow
def test_features_with_a_coarse_map_are_also_measured_on_the_aligned_volume(volumes):
    result = subject_matching(WorldExtractor(with_coarse_map=True), [(volumes[0], volumes[0])])
    assert result["aligned"]["same_structure"] > 0.98
    assert result["aligned"]["center_mm"] < 1.5
    assert set(result["aligned"]["structures"]) == {"test 1", "test 2", "test 3"}


def test_matches_that_are_all_shifted_put_the_centers_off_by_the_shift(volumes, tmp_path):
    moved = sitk.ReadImage(str(volumes[0].path))
    labels = sitk.ReadImage(str(volumes[0].labels[0].path))
    for image, name in ((moved, "v0.nii.gz"), (labels, "v0_labels.nii.gz")):
        image.SetOrigin((100.0, 0.0, 0.0))
        sitk.WriteImage(image, str(tmp_path / name))
    manifest = Path(volumes[0].path).parent / "manifest.json"
    (tmp_path / "manifest.json").write_text(manifest.read_text())
    other = read_manifest(tmp_path / "manifest.json")[0]
    # The moved volume's own positions are 100 mm further along x; its vectors say (-108, -8, -8) mm from there.
    aside = WorldExtractor({100.0: np.array([-108.0, -8.0, -8.0])})
    result = subject_matching(aside, [(volumes[0], other)])
    for way in WAYS_WITHOUT_COARSE_MAP:
        assert result[way]["center_mm"] == pytest.approx(8 * 3**0.5, abs=1.5)
        assert result[way]["same_structure"] < 0.3


def test_a_match_is_refined_between_voxels():
    grid = Grid((12, 10, 9), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    target = WorldExtractor().extract(Image(torch.zeros(grid.shape), grid)).fine
    wanted = np.array([[4.3, 5.8, 3.1], [7.0, 2.4, 6.6]])
    phase = torch.from_numpy(grid.to_world(wanted)).float() @ WorldExtractor().waves.T
    queries = torch.cat([phase.sin(), phase.cos()], dim=-1) / 48**0.5
    np.testing.assert_allclose(nearest_voxels(queries, target).numpy(), wanted, atol=0.15)


def test_changed_views_stay_within_the_stated_deformation(volumes):
    first, second = changed_views(read_image(volumes[0].path, "CT"), seed=3)
    grid = first.image.grid
    voxels = np.stack(np.meshgrid(*[np.arange(0, size, 3) for size in grid.size], indexing="ij"), axis=-1)
    voxels = voxels.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(first.source_of(voxels), voxels * 2.0, atol=1e-3)
    found = second.source_of(voxels)
    design = np.concatenate([voxels, np.ones((len(voxels), 1))], axis=1)
    affine, *_ = np.linalg.lstsq(design, found, rcond=None)
    elastic = np.linalg.norm(found - design @ affine, axis=1)
    # What a fitted affine map takes away in the mean it may add to the largest displacements.
    assert 1.0 < elastic.max() <= 1.25 * LARGEST_DISPLACEMENT
    assert 0.6 < np.linalg.det(affine[:3]) ** (1 / 3) / 2.0 < 1.45


def test_nothing_of_a_view_is_cut_away_since_a_point_must_be_seen_to_be_matched(volumes):
    image = read_image(volumes[0].path, "CT")
    for seed in range(12):
        for view in changed_views(image, seed):
            body = view.body
            shown = (view.image.data > BODY_HU)[body].float().mean()
            assert shown > 0.8, f"view {seed} lacks {100 * (1 - shown):.0f} % of the body"


def test_self_matching_by_position_in_the_first_view_measures_the_deformation(volumes):
    """Features that know only the voxel's place match every point to the same place, which is wrong by the
    deformation; features of the grey values alone cannot be better than half a voxel."""
    blind = self_matching(WorldExtractor(), volumes[:1], seed=3)
    first, second = changed_views(read_image(volumes[0].path, "CT"), seed=3)
    z, y, x = torch.nonzero(first.body).unbind(1)
    true = (second.positions - first.positions)[:, z, y, x].norm(dim=0)
    for way in WAYS_WITHOUT_COARSE_MAP:
        assert blind[way]["points"] > 100
        assert blind[way]["median_mm"] == pytest.approx(float(true.median()), rel=0.3)


def test_pairs_are_of_different_subjects_and_use_each_about_as_often(volumes):
    pairs = draw_pairs(volumes, 8, seed=0)
    assert len(pairs) == 8 and len(set(pairs)) == 8
    assert all(fixed.subject != moving.subject for fixed, moving in pairs)
    assert {sum(fixed is volume for fixed, _ in pairs) for volume in volumes} == {2}
    assert draw_pairs(volumes, 8, seed=0) == pairs


def test_the_whole_evaluation_runs_with_mind_and_can_be_printed(volumes):
    result = evaluate_features(MindExtractor(), volumes[:2], 1, 1, seed=0)
    assert json.loads(json.dumps(result)) == result
    text = format_evaluation(result)
    assert "features mind" in text and "1 pairs" in text
    assert "aligned" not in text and "aligned" not in result["subjects"]


def test_one_list_of_a_split_file_can_be_chosen(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"comment": "c", "validation": ["a"], "other": ["b"]}))
    assert read_excluded_names(path) == {"a", "b"}
    assert read_excluded_names(path, "validation") == {"a"}
    with pytest.raises(InputError, match="no list named wrong"):
        read_excluded_names(path, "wrong")


def test_the_command_evaluates_and_writes_the_numbers(volumes, tmp_path, capsys):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"validation": ["v0", "v1"]}))
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers())
    manifest = volumes[0].path.parent / "manifest.json"
    out = tmp_path / "numbers.json"
    arguments = ["train", "evaluate", "--data", str(manifest), "--held-out", str(split), "--model", "mind"]
    options = parser.parse_args([*arguments, "--volumes", "1", "--pairs", "1", "--device", "cpu", "-o", str(out)])
    assert run_train(options) == 0
    result = json.loads(out.read_text())
    for way in WAYS_WITHOUT_COARSE_MAP:
        assert set(result["self"][way]["volumes"]) == {"v0"}
    assert result["subjects"]["pairs"] == 1
    printed = capsys.readouterr().out
    assert all(
        f"self matching, {way}" in printed and f"subject matching, {way}" in printed
        for way in WAYS_WITHOUT_COARSE_MAP
    )
