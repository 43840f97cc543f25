"""Presets by features are the shipped presets with other features, and many processes do what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.feature_tables import feature_markdown
from benchmarks.job import Job, ResultFiles
from benchmarks.ours import Preset, with_features
from benchmarks.processes import Worker
from benchmarks.registry import find_method
from benchmarks.runner import Run, run_all
from benchmarks.suites import FEATURE_METHODS, default_methods
from benchmarks.tables import Result

from SAMRegistrationLib.presets import load_preset
from SAMRegistrationLib.stages import check_stages

PAIR = "sts032_ct_mr"


def test_both_features_are_what_default_ships() -> None:
    shipped = load_preset("default")
    assert with_features(shipped, "both").stages == shipped.stages


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_every_variant_asks_for_stages_and_settings_that_there_are(name: str) -> None:
    method = find_method(name).method
    assert isinstance(method, Preset)
    preset, _, features = method.name.partition("+")
    if features:
        chosen = with_features(load_preset(preset), features)
        check_stages(chosen.stages)
        assert chosen.features == ("mind" if features == "mind" else "sam")
        assert chosen.fallback is None


def test_sam_alone_leaves_no_mind_in_any_stage() -> None:
    stages = with_features(load_preset("default"), "sam").stages
    assert {s.settings[k] for s in stages for k in ("mind_share", "mind_weight") if k in s.settings} == {0.0}


def test_unknown_features_are_refused() -> None:
    with pytest.raises(ValueError, match="no features 'deep'"):
        with_features(load_preset("default"), "deep")


def test_suites_know_their_methods() -> None:
    assert default_methods("issue3", "starts_cut") == ("affine", "affine+mind", "sitk-affine")
    assert find_method("default+mind@affine").start == "affine"
    assert "convexadam-0.2.0" in default_methods("issue2", "openkbp_inter")
    assert not any("convexadam-" in name for name in default_methods("issue3", "openkbp_inter"))


def test_a_job_survives_being_written_as_a_line() -> None:
    job = Job(Path("/data"), Path("/out"), "issue3", "a__b", "default+mind@affine", start="affine", threads=1)
    assert Job.from_json(job.as_json()) == job
    assert "\n" not in job.as_json()


@pytest.mark.data
@pytest.mark.slow
def test_lasting_processes_do_every_job_and_report_the_ones_that_fail(data_dir: Path, tmp_path: Path) -> None:
    methods = ("initial", "no-such-preset", "convexadam@no-such-preset")
    run = Run(data_dir, tmp_path, "issue2", methods, (PAIR,), limit_s=120, threads=1, jobs=2, keep_fields=False)
    assert run_all(run) == [f"{PAIR} no-such-preset", f"{PAIR} convexadam@no-such-preset"]
    good = ResultFiles(tmp_path, PAIR, "initial")
    report = good.read()
    assert report is not None and report["status"] == "done" and report["peak_memory_mib"] is None
    assert not good.displacement.exists()
    failed = ResultFiles(tmp_path, PAIR, "no-such-preset").read()
    assert failed is not None and "unknown preset" in failed["message"]
    dependent = ResultFiles(tmp_path, PAIR, "convexadam@no-such-preset").read()
    assert dependent is not None and "left no affine result" in dependent["message"]


@pytest.mark.data
@pytest.mark.parametrize("jobs", [1, 2])
def test_no_job_begins_after_the_time_is_up(data_dir: Path, tmp_path: Path, jobs: int) -> None:
    run = Run(data_dir, tmp_path, "issue2", ("initial",), (PAIR,), jobs=jobs, budget_s=0.0)
    assert run_all(run) == []
    assert not (tmp_path / "results").exists()


@pytest.mark.data
@pytest.mark.slow
def test_a_process_that_takes_too_long_is_ended_and_the_next_job_gets_another(
    data_dir: Path, tmp_path: Path
) -> None:
    job = Job(data_dir, tmp_path, "issue2", PAIR, "initial", threads=1)
    worker = Worker(threads=1)
    try:
        assert worker.do(job, limit_s=0.05).status == "time limit"
        assert worker.do(job, limit_s=120).status == "done"
        assert worker.do(job, limit_s=120).status == "done"
    finally:
        worker.stop()


def result(family: str, method: str, dice: float, center: float | None, pair: str = "p") -> Result:
    def score(metric: str, value: float | None) -> dict[str, Any]:
        return {"metric": metric, "label": "Larynx", "group": "neck", "scored": True, "value": value}

    scores = [score("dice", dice), score("center_mm", center), score("folded_percent", 0.0)]
    if family == "plm_4dct":
        scores.append(score("tre_mean_mm", 1.5) | {"label": "", "group": ""})
    return Result(pair, family, method, {"status": "done", "seconds": 2.0, "scores": scores})


def test_the_feature_table_averages_all_pairs_and_those_between_subjects() -> None:
    results = [result("openkbp_inter", "default+sam", 0.6, 4.0), result("plm_4dct", "default+sam", 0.9, 1.0)]
    text = feature_markdown(results)
    assert "| default+sam | 2 | 75.0 | 60.0 | 1.50 | 0.000 | 2.0 |" in text
    assert "hard starts" not in text


def test_the_table_of_starts_counts_lost_organs_and_failures_as_not_aligned() -> None:
    failed = Result("d", "starts_cut", "affine", {"status": "failed", "message": "no", "scores": []})
    results = [
        result("starts_cut", "affine", 0.6, 24.0, "a"),
        result("starts_cut", "affine", 0.6, 26.0, "b"),
        result("starts_cut", "affine", 0.0, None, "c"),
        failed,
        result("starts_turned_90", "affine", 0.6, 5.0),
    ]
    text = feature_markdown(results)
    assert "| affine | 4 of 5 | 100.0 % | 5.0 | 25.0 % | 26.0 | 2.0 |" in text
    assert "by features" not in text
