"""Suites say what they mean, the shipped ones keep what they promise, and names find their methods."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from benchmark_phantoms import OFFSET, write_suite

from SAMRegistrationLib.benchmark import datasets
from SAMRegistrationLib.benchmark.datasets import Dataset
from SAMRegistrationLib.benchmark.methods import METHODS, OURS, Methods
from SAMRegistrationLib.benchmark.ours import with_features
from SAMRegistrationLib.benchmark.pairs import Mask, Offset, Pair, Resampled, Start
from SAMRegistrationLib.benchmark.suite import load_suite, suite_names
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.presets import load_preset, preset_names
from SAMRegistrationLib.stages import check_stages

SPLIT_FILE = Path(__file__).with_name("training_split.json")


def test_openkbp_pairs_use_each_held_out_subject_twice_as_fixed_and_twice_as_moving() -> None:
    held_out = sorted(json.loads(SPLIT_FILE.read_text())["validation"])
    pairs = load_suite("openkbp_inter").entries
    for role in ("fixed", "moving"):
        assert sorted(Path(pair[role]).name.removesuffix(".nii.gz") for pair in pairs) == sorted(held_out * 2)
    assert all(pair["fixed"] != pair["moving"] for pair in pairs)
    assert len({(pair["fixed"], pair["moving"]) for pair in pairs}) == 40


def test_limb_offsets_are_rigid_and_within_their_limits() -> None:
    pairs = load_suite("limbs").entries
    assert len(pairs) == 9
    for pair in pairs:
        matrix = np.asarray(pair["moving_offset"])
        rotation = matrix[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-7)
        angle = np.degrees(np.arccos((np.trace(rotation) - 1) / 2))
        assert np.linalg.det(rotation) > 0 and angle <= 20
        assert pair["same_contrast"] is False


@pytest.mark.data
@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_finds_its_files_and_its_methods(name: str, data_dir: Path) -> None:
    suite = load_suite(name, data_dir)
    pairs = suite.pairs()
    assert pairs and [pair.name for pair in pairs] == [entry["name"] for entry in suite.entries]
    assert all(pair.labels or pair.landmarks or pair.truth or pair.preparation for pair in pairs)
    methods = Methods([m for m in suite.methods if isinstance(m, dict)])
    for method in methods.with_starts(m if isinstance(m, str) else m["name"] for m in suite.methods):
        found = methods.find(method)
        if found.is_ours:
            assert found.settings["preset"] in preset_names()


def test_the_suite_of_all_holds_every_pair_of_the_others_once() -> None:
    everything = {entry["name"] for entry in load_suite("all").entries}
    apart = ("all", "features", "hard_starts", "known_truth", "speed")
    parts = [load_suite(name) for name in suite_names() if name not in apart]
    assert everything == {entry["name"] for part in parts for entry in part.entries}
    assert len(load_suite("all").references) == sum(len(part.references) for part in parts)


def test_a_suite_becomes_pairs_with_everything_that_is_known_about_them(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, ["initial"]))
    first, second = suite.pairs()
    assert (first.name, second.name, first.family) == ("first", "second", "balls")
    assert first.start is Start.IDENTITY and first.same_contrast
    assert [label.scored for label in first.labels] == [True, False]
    fixed, moving = first.landmark_points()
    np.testing.assert_allclose(moving - fixed, np.tile(OFFSET, (2, 1)))
    assert first.truth is not None and first.truth.mask is Mask.BODY
    assert [pair.name for pair in suite.pairs(["second"])] == ["second"]
    assert len(suite.pairs(["balls"])) == 2
    with pytest.raises(UsageError, match="no pair or family third"):
        suite.pairs(["third"])


def test_a_pair_with_a_size_is_resampled_to_it_around_its_middle(tmp_path: Path) -> None:
    z, y, x = np.indices((6, 10, 8), dtype=np.float32)
    ramp = sitk.GetImageFromArray(2 * x + 3 * y - z + 100)
    ramp.SetSpacing((3.0, 2.0, 5.0))
    ramp.SetOrigin((7.0, -4.0, 1.0))
    file = tmp_path / "ramp.nii.gz"
    sitk.WriteImage(ramp, str(file))
    pair = Pair("pair", "family", file, file, Start.IDENTITY, preparation=Resampled((10, 20, 18), 2.0))
    prepared = pair.prepared(tmp_path)
    whole = Grid.from_sitk(ramp)
    for image in (sitk.ReadImage(str(path)) for path in (prepared.fixed, prepared.moving)):
        grid, values = Grid.from_sitk(image), sitk.GetArrayFromImage(image)
        assert grid.size == (10, 20, 18) and grid.spacing == (2.0, 2.0, 2.0)
        np.testing.assert_allclose(grid.center, whole.center, atol=1e-5)
        voxels = whole.to_voxel(grid.to_world(np.stack(np.indices(grid.shape)[::-1], -1)))
        inside = ((voxels > 0) & (voxels < np.array(whole.size) - 1)).all(axis=-1)
        np.testing.assert_allclose(values[inside], (voxels @ (2.0, 3.0, -1.0) + 100)[inside], atol=1e-3)
        beyond = ((voxels < -0.6) | (voxels > np.array(whole.size) - 0.4)).any(axis=-1)
        assert beyond.any() and (values[beyond] == 95).all()


def changed(folder: Path, **changes: Any) -> Path:
    file = write_suite(folder, ["initial"])
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric": ["labels"]}, "unknown entry 'metric'"),
        ({"metrics": ["beauty"]}, "unknown metric 'beauty'"),
        ({"methods": []}, "lacks 'methods'"),
        ({"pairs": [{"name": "a", "dataset": "b"}]}, "dataset 'b'"),
        ({"pairs": [{"name": "a", "dataset": "balls"}] * 2}, "two pairs are called 'a'"),
        ({"pairs": [{"dataset": "balls"}]}, "without a name"),
        ({"include": ["balls.json"]}, "includes itself"),
    ],
)
def test_a_suite_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_suite(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"fixed": "gone.nii.gz"}, "gone.nii.gz, which is not there"),
        ({"start": "anywhere"}, "'anywhere' is not a valid Start"),
        ({"labels": "bones"}, "bones"),
        ({"truth": {"mask": "gone.nii.gz"}}, "gone.nii.gz, which is not there"),
    ],
)
def test_a_pair_that_cannot_be_read_is_named(tmp_path: Path, entry: dict[str, Any], sentence: str) -> None:
    file = write_suite(tmp_path, ["initial"])
    content = json.loads(file.read_text())
    content["pairs"][1] |= entry
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"second.*{sentence}"):
        load_suite(file).pairs()


def test_what_is_no_suite_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    for text, sentence in (("[", "is not JSON"), ("[]", "is no suite")):
        file.write_text(text)
        with pytest.raises(InputError, match=sentence):
            load_suite(file)


def test_a_dataset_of_another_kind_is_read_by_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "own_reader_of_tests.py"
    module.write_text(
        "from SAMRegistrationLib.benchmark.pairs import Pair, Start\n"
        "def read(dataset):\n"
        "    return [Pair(e['name'], dataset.options['family'], dataset.root, dataset.root, Start.IDENTITY)\n"
        "            for e in dataset.entries]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(datasets.KINDS, "own", "own_reader_of_tests:read")
    found = datasets.read_dataset(Dataset("d", {"kind": "own", "family": "f"}, [{"name": "p"}], {}, tmp_path))
    assert found == [Pair("p", "f", tmp_path, tmp_path, Start.IDENTITY)]
    with pytest.raises(InputError, match="unknown kind 'other'"):
        datasets.read_dataset(Dataset("d", {"kind": "other"}, [], {}, tmp_path))


@pytest.mark.data
def test_a_limb_is_moved_by_its_offset_once(data_dir: Path, tmp_path: Path) -> None:
    pair = load_suite("limbs", data_dir).pairs(["sts032_ct_mr"])[0]
    assert isinstance(pair.preparation, Offset)
    ready = pair.prepared(tmp_path)
    written = ready.moving.stat().st_mtime_ns
    assert pair.prepared(tmp_path).moving.stat().st_mtime_ns == written
    assert ready.preparation is None and ready.prepared(tmp_path) is ready


def test_names_find_peers_presets_and_starts() -> None:
    methods = Methods()
    assert methods.find("convexadam-0.2.0").start == "affine"
    assert methods.find("convexadam-0.2.0@sitk-affine").start == "sitk-affine"
    assert methods.find("samconvex").start is None
    assert methods.find("default+mind@affine").settings == {"preset": "default", "features": "mind"}
    assert methods.find("default").module == OURS and methods.find("syn").module == METHODS["syn"].module
    ordered = ["affine", "convexadam-0.2.0", "initial"]
    assert methods.with_starts(["convexadam-0.2.0", "initial", "affine"]) == ordered
    assert methods.with_starts(["initial@demons"]) == ["sitk-affine", "demons", "initial@demons"]
    with pytest.raises(UsageError, match="no features 'deep'"):
        methods.find("default+deep")


def test_options_of_the_suite_and_of_the_command_reach_a_method() -> None:
    described = [
        {"name": "mine", "module": "my.module", "settings": {"a": 1, "b": 2}, "limit_s": 5},
        {"name": "slow-greedy", "method": "greedy", "start": "affine", "python": "/other/python"},
    ]
    methods = Methods(described, {"mine": "/third/python"}, {"mine": {"b": "3"}})
    mine = methods.find("mine@affine")
    assert (mine.module, mine.settings, mine.start) == ("my.module", {"a": 1, "b": "3"}, "affine")
    assert (mine.python, mine.limit_s) == ("/third/python", 5)
    greedy = methods.find("slow-greedy")
    assert (greedy.module, greedy.python, greedy.start) == (METHODS["greedy"].module, "/other/python", "affine")
    assert methods.find("greedy").python == sys.executable
    with pytest.raises(UsageError, match="cannot begin with itself"):
        methods.find("greedy@greedy")
    with pytest.raises(UsageError, match="unknown option 'speed'"):
        Methods([{"name": "x", "speed": 1}]).find("x")


def test_both_features_are_what_default_ships() -> None:
    shipped = load_preset("default")
    assert with_features(shipped, "both").stages == shipped.stages


def test_every_variant_of_features_asks_for_stages_and_settings_that_there_are() -> None:
    variants = [m for m in load_suite("features").methods if isinstance(m, str) and "+" in m]
    assert len(variants) == 16
    for name in variants:
        settings = Methods().find(name).settings
        chosen = with_features(load_preset(settings["preset"]), settings["features"])
        check_stages(chosen.stages)
        assert chosen.features == ("mind" if settings["features"] == "mind" else "sam")
        assert chosen.fallback is None


def test_sam_alone_leaves_no_mind_in_any_stage() -> None:
    stages = with_features(load_preset("default"), "sam").stages
    assert {s.settings[k] for s in stages for k in ("mind_share", "mind_weight") if k in s.settings} == {0.0}
