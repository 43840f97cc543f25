"""The benchmark measures what it says: peers' fields mean what we take them for, scores follow the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from benchmarks.evaluate import distance_per_slice, evaluate
from benchmarks.geometry import apply_matrix, moved_in_world
from benchmarks.job import ResultFiles
from benchmarks.method import Task, affine
from benchmarks.pairs import PAIRS_FILE, Pair, Start, load_pairs
from benchmarks.peers.convex_adam import register_on_grid, working_grid
from benchmarks.peers.sitk_affine import SitkAffine
from benchmarks.registry import find_method, with_starts
from benchmarks.runner import Run, run_all
from benchmarks.tables import collect, markdown, write_csv, write_results

from SAMRegistrationLib.field import DisplacementField, displacement_on
from SAMRegistrationLib.grid import Grid

SPLIT_FILE = Path(__file__).with_name("training_split.json")


def smooth_noise(grid: Grid, seed: int) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=grid.shape).astype(np.float32)
    smoothed = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.5)
    return torch.from_numpy(sitk.GetArrayFromImage(smoothed)) * 2000


def scores_of(pair: Pair, field: DisplacementField) -> dict[tuple[str, str], float | None]:
    return {(score.metric, score.label): score.value for score in evaluate(pair, field)}


def test_openkbp_pairs_use_each_held_out_subject_once_as_fixed_and_once_as_moving() -> None:
    held_out = sorted(json.loads(SPLIT_FILE.read_text())["validation"])
    pairs = [p for p in json.loads(PAIRS_FILE.read_text())["pairs"] if p["family"] == "openkbp_inter"]
    for role in ("fixed", "moving"):
        assert sorted(Path(pair[role]).name.removesuffix(".nii.gz") for pair in pairs) == held_out
    assert all(pair["fixed"] != pair["moving"] for pair in pairs)


def test_limb_offsets_are_rigid_and_within_their_limits() -> None:
    pairs = [p for p in json.loads(PAIRS_FILE.read_text())["pairs"] if p["family"] == "sts_ct_mr"]
    assert len(pairs) == 10
    for pair in pairs:
        matrix = np.asarray(pair["moving_offset"])
        rotation = matrix[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-7)
        angle = np.degrees(np.arccos((np.trace(rotation) - 1) / 2))
        assert np.linalg.det(rotation) > 0 and angle <= 20


def test_moving_a_volume_in_the_world_takes_every_voxel_along() -> None:
    image = sitk.Image([5, 6, 7], sitk.sitkInt16)
    image.SetSpacing([1.0, 2.0, 3.0])
    image.SetOrigin([10.0, -20.0, 30.0])
    matrix = np.array([[0, -1, 0, 5], [1, 0, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]], dtype=float)
    moved = moved_in_world(image, matrix)
    for index in ([0, 0, 0], [4, 5, 6], [2, 1, 3]):
        expected = apply_matrix(matrix, np.asarray(image.TransformIndexToPhysicalPoint(index)))
        np.testing.assert_allclose(moved.TransformIndexToPhysicalPoint(index), expected, atol=1e-9)


@pytest.mark.slow
def test_convexadam_returns_the_shift_of_an_oblique_volume_in_world_millimeters() -> None:
    pytest.importorskip("convexAdam")
    turn = np.array([[0.0, -1.0, 0.0], [0.8, 0.0, -0.6], [0.6, 0.0, 0.8]])
    grid = Grid((60, 48, 54), (2.0, 2.0, 2.0), (7.0, -30.0, 12.0), tuple(turn.ravel()))
    big = smooth_noise(grid.padded(8), seed=3)
    voxels = np.array([5, -3, 2])
    fixed, moving = (
        big[8 + s[2] : 62 + s[2], 8 + s[1] : 56 + s[1], 8 + s[0] : 68 + s[0]] for s in ((0, 0, 0), -voxels)
    )
    field = register_on_grid(fixed, moving, grid, "cpu")
    expected = turn @ (voxels * 2.0)
    inner = field.data[0, :, 13:-13, 13:-13, 13:-13].reshape(3, -1).numpy()
    # The package itself shortens displacements by one part in the number of voxels.
    np.testing.assert_allclose(np.median(inner, axis=1), expected, atol=0.4)


def test_the_working_grid_of_convexadam_covers_the_fixed_volume_in_whole_steps() -> None:
    fixed = Grid((31, 44, 25), (4.9, 3.0, 2.5), (5.0, 6.0, 7.0), (0, 1, 0, -1, 0, 0, 0, 0, 1))
    grid = working_grid(fixed)
    assert all(n % 6 == 0 for n in grid.size)
    assert grid.spacing == (2.0, 2.0, 2.0)
    assert grid.contains(fixed.corners() * 0.999 + fixed.center * 0.001).all()


@pytest.mark.slow
def test_the_intensity_affine_recovers_a_known_affine_map(tmp_path: Path) -> None:
    grid = Grid((48, 44, 40), (2.0, 2.0, 2.5), (-40.0, 3.0, 9.0))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    ball = (x**2 + 1.3 * y**2 + 0.8 * z**2 < 0.6).astype(np.float32)
    volume = torch.from_numpy(ball * 300) + smooth_noise(grid, seed=5) * torch.from_numpy(ball) * 0.5
    matrix = np.eye(4)
    matrix[:3, :3] = [[1.05, 0.08, 0.0], [-0.08, 0.97, 0.03], [0.0, -0.03, 1.0]]
    matrix[:3, 3] = grid.center - matrix[:3, :3] @ grid.center + (4.0, -3.0, 5.0)
    moving = sitk.GetImageFromArray(volume.numpy())
    moving.SetSpacing(grid.spacing)
    moving.SetOrigin(grid.origin)
    fixed = sitk.Resample(moving, moving, affine(matrix).to_sitk(), sitk.sitkLinear, 0.0)
    pair = Pair("ball", "synthetic", tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", Start.IDENTITY)
    sitk.WriteImage(fixed, str(pair.fixed))
    sitk.WriteImage(moving, str(pair.moving))
    found = SitkAffine().run(Task(pair, None, "cpu", tmp_path)).transform
    for point in grid.to_world(np.array([[24, 22, 20], [12, 20, 20], [30, 30, 12], [20, 12, 30]])):
        error = np.subtract(found.to_sitk().TransformPoint(point.tolist()), apply_matrix(matrix, point))
        assert np.linalg.norm(error) < 1.5


def test_methods_start_from_what_their_name_asks_for() -> None:
    assert find_method("convexadam-0.2.0").start == "affine"
    assert find_method("convexadam-0.2.0@sitk-affine").start == "sitk-affine"
    assert find_method("samconvex").start is None
    assert with_starts(["convexadam-0.2.0", "initial", "affine"]) == ["affine", "convexadam-0.2.0", "initial"]


@pytest.mark.data
def test_the_true_transform_scores_no_error_and_no_transform_scores_its_length(
    data_dir: Path, tmp_path: Path
) -> None:
    pair = load_pairs(data_dir, names=["sts032_ct_mr"])[0].prepared(tmp_path)
    assert pair.truth is not None and pair.truth.matrix is not None
    grid = Grid.from_sitk(sitk.ReadImage(str(pair.fixed)))
    truth = scores_of(pair, displacement_on(affine(pair.truth.matrix), grid))
    nothing = scores_of(pair, DisplacementField.zero(grid))
    assert truth["error_max_mm", ""] == pytest.approx(0, abs=1e-3)
    assert truth["folded_percent", ""] == 0
    lengths = np.linalg.norm(apply_matrix(pair.truth.matrix, grid.corners()) - grid.corners(), axis=1)
    assert 0 < nothing["error_max_mm", ""] <= lengths.max()


@pytest.mark.data
def test_a_volume_registered_to_itself_has_perfect_overlap(data_dir: Path) -> None:
    pair = load_pairs(data_dir, names=["openkbp_inter"])[0]
    assert pair.label_maps is not None
    same = replace(pair, moving=pair.fixed, label_maps=(pair.label_maps[0], pair.label_maps[0]))
    grid = Grid.from_sitk(sitk.ReadImage(str(pair.fixed)))
    scores = scores_of(same, DisplacementField.zero(grid))
    assert scores["inside_percent", ""] == 100
    for label in same.labels:
        if ("dice", label.name) in scores:
            assert scores["dice", label.name] == 1
            assert scores["hd95_mm", label.name] == 0
            assert scores["center_mm", label.name] == 0
    shifted = DisplacementField.zero(grid)
    shifted.data[:, 0] = 12.0
    assert scores_of(same, shifted)["center_mm", "Mandible"] == pytest.approx(12, abs=max(grid.spacing) / 2 + 0.1)


def test_tubes_are_compared_slice_by_slice_whatever_their_length_and_thickness() -> None:
    grid = Grid((20, 20, 12), (2.0, 2.0, 3.0), (5.0, -3.0, 1.0))
    fixed, warped = (np.zeros(grid.shape, dtype=bool) for _ in range(2))
    fixed[0:9, 4:7, 4:7] = True
    warped[4:12, 8:11, 7:10] = True
    warped[7:12, 7:12, 6:11] = True
    assert distance_per_slice(fixed, warped, grid) == pytest.approx(2.0 * 5.0)
    assert np.isnan(distance_per_slice(fixed[::-1] & False, warped, grid))


@pytest.mark.data
@pytest.mark.slow
def test_the_runner_records_results_failures_and_time_limits_and_does_not_repeat_them(
    data_dir: Path, tmp_path: Path
) -> None:
    run = Run(data_dir, tmp_path, "issue2", ("initial", "no-such-preset"), ("sts032_ct_mr",), limit_s=120)
    run_all(run)
    good = ResultFiles(tmp_path, "sts032_ct_mr", "initial")
    bad = ResultFiles(tmp_path, "sts032_ct_mr", "no-such-preset").read()
    report = good.read()
    assert report is not None and report["status"] == "done" and report["peak_memory_mib"] > 50
    assert bad is not None and bad["status"] == "failed" and bad["message"]
    good.write(report | {"seconds": -1})
    run_all(run)
    assert (good.read() or {})["seconds"] == -1
    run_all(replace(run, methods=("initial",), force=True, limit_s=0.05))
    assert (good.read() or {})["status"] == "time limit"


def report_of(dice: float | None, pair: str) -> dict[str, object]:
    score = {"metric": "dice", "label": "Larynx", "group": "neck", "scored": True, "value": dice}
    center = score | {"metric": "center_mm", "value": 8.0 if dice else None}
    return {"status": "done", "seconds": 2.0, "peak_memory_mib": 512.0, "scores": [score, center], "pair": pair}


@pytest.mark.data
def test_tables_average_over_pairs_and_count_failures(data_dir: Path, tmp_path: Path) -> None:
    run = Run(data_dir, tmp_path, "issue2", ("initial", "sitk-affine"), ("openkbp_inter",))
    first, second = (pair.name for pair in run.load_pairs()[:2])
    ResultFiles(tmp_path, first, "initial").write(report_of(0.2, first))
    ResultFiles(tmp_path, second, "initial").write(report_of(0.4, second))
    ResultFiles(tmp_path, first, "sitk-affine").write(report_of(0.5, first))
    failed = {"status": "failed", "message": "no", "scores": []}
    ResultFiles(tmp_path, second, "sitk-affine").write(failed)
    results = collect(run)
    text = markdown(results)
    assert "| initial | 2 | 30.0 |" in text
    assert "| sitk-affine | 1 of 2 | 50.0 | 8.0 | 1 |" in text
    target = tmp_path / "RESULTS.md"
    target.write_text("before\n<!-- issue2: begin -->\nold\n<!-- issue2: end -->\nafter\n")
    write_results(markdown(results), "issue2", target)
    written = target.read_text()
    assert written.startswith("before") and written.endswith("after\n") and "old" not in written
    write_csv(results, tmp_path / "all.csv")
    assert f"openkbp_inter,{first},sitk-affine,dice,Larynx,neck,True,0.5" in (tmp_path / "all.csv").read_text()
