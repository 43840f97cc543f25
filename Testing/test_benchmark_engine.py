"""The benchmark survives whatever methods do, does nothing twice, and gives the same figures again."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_phantoms import OFFSET, method, write_suite

from SAMRegistrationLib.benchmark.methods import Methods
from SAMRegistrationLib.benchmark.runner import Run, collect, judge_all_again, run_all
from SAMRegistrationLib.benchmark.suite import load_suite
from SAMRegistrationLib.cli import main


def run_of(folder: Path, methods: list[Any], **options: Any) -> Run:
    suite = load_suite(write_suite(folder, methods, limit_s=60))
    described = [entry for entry in suite.methods if isinstance(entry, dict)]
    return Run(suite, folder / "out", known=Methods(described), threads=1, **options)


def scores(run: Run, pair: str, name: str) -> dict[tuple[str, str], Any]:
    report = run.files(pair, name).read()
    assert report is not None
    return {(score["metric"], score["label"]): score["value"] for score in report["scores"]}


def test_a_method_that_knows_the_answer_is_right_and_one_that_does_nothing_is_off_by_the_offset(
    tmp_path: Path,
) -> None:
    good = method(tmp_path, "good", settings={"offset": OFFSET.tolist()})
    run = run_of(tmp_path, ["initial", good], pairs=("first",))
    assert run_all(run) == []
    right, nothing = scores(run, "first", "good"), scores(run, "first", "initial")
    length = float(np.linalg.norm(OFFSET))
    assert right["dice", "left"] == 1 and nothing["dice", "left"] < 0.5
    for metric in ("tre_mean_mm", "error_mean_mm"):
        assert right[metric, ""] == pytest.approx(0, abs=1e-4)
        assert nothing[metric, ""] == pytest.approx(length, abs=1e-4)
    report = run.files("first", "good").read() or {}
    assert report["stages"] == {"guess": 0.25} and report["warnings"] == ["only a guess"]
    assert report["peak_memory_mib"] > 10 and report["seconds"] > 0
    assert report["settings"] == {"threads": 1}
    np.testing.assert_allclose(np.asarray(report["matrix"])[:3, 3], OFFSET)


@pytest.mark.slow
def test_methods_that_crash_hang_raise_or_are_missing_are_told_apart_and_stop_nobody(tmp_path: Path) -> None:
    kinds = ("crashing", "raising", "missing", "silent")
    methods: list[Any] = [method(tmp_path, kind) for kind in kinds]
    methods.append(method(tmp_path, "hanging", limit_s=15.0))
    methods.append({"name": "nowhere", "module": methods[0]["module"], "python": str(tmp_path / "no_python")})
    methods.append(method(tmp_path, "good"))
    run = run_of(tmp_path, methods, pairs=("first",))
    began = time.monotonic()
    assert len(run_all(run)) == 6
    assert time.monotonic() - began < 120
    reports = {result.method: result.report for result in collect(run)}
    assert reports["good"]["status"] == "done"
    assert {name: reports[name]["status"] for name in (*kinds, "hanging", "nowhere")} == {
        "crashing": "failed",
        "raising": "failed",
        "missing": "not installed",
        "silent": "failed",
        "hanging": "time limit",
        "nowhere": "not installed",
    }
    assert "SIGABRT" in reports["crashing"]["message"]
    assert "it diverged" in reports["raising"]["message"]
    assert "no_such_package_anywhere" in reports["missing"]["message"]
    assert "about to fall" in run.files("first", "crashing").log.read_text()
    child = int((tmp_path / "child.pid").read_text())
    assert not is_running(child), "what a stopped method started must be stopped too"


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()


def test_what_is_there_is_not_done_again_unless_asked_for(tmp_path: Path) -> None:
    run = run_of(tmp_path, [method(tmp_path, "good"), method(tmp_path, "raising")], pairs=("first",))
    run_all(run)
    good, bad = run.files("first", "good"), run.files("first", "raising")
    good.write((good.read() or {}) | {"seconds": -1.0})
    bad.write((bad.read() or {}) | {"message": "old"})
    run_all(run)
    assert (good.read() or {})["seconds"] == -1 and (bad.read() or {})["message"] == "old"
    run_all(replace(run, retry=True))
    assert (good.read() or {})["seconds"] == -1 and "it diverged" in (bad.read() or {})["message"]
    run_all(replace(run, force=True))
    assert (good.read() or {})["seconds"] > 0


def test_a_method_starts_from_what_another_one_found_and_fails_where_that_found_nothing(tmp_path: Path) -> None:
    first = method(tmp_path, "good", "first_half", settings={"offset": (OFFSET / 2).tolist()})
    second = method(tmp_path, "good", "second_half", settings={"offset": (OFFSET / 2).tolist()})
    run = run_of(tmp_path, ["second_half@first_half", first, second], pairs=("first",))
    assert run.method_names() == ["first_half", "second_half@first_half", "second_half"]
    assert run_all(run) == []
    assert scores(run, "first", "second_half@first_half")["tre_max_mm", ""] == pytest.approx(0, abs=1e-4)
    report = run.files("first", "second_half@first_half").read() or {}
    start = run.files("first", "first_half").read() or {}
    assert report["start"] == "first_half" and report["start_seconds"] == start["seconds"]
    assert scores(run, "first", "second_half")["tre_max_mm", ""] > 1
    failing = run_of(tmp_path / "b", ["initial@raising", method(tmp_path, "raising")], pairs=("first",))
    assert len(run_all(failing)) == 2
    assert "left no affine result" in (failing.files("first", "initial@raising").read() or {})["message"]


def test_the_same_seed_gives_the_same_accuracy_to_the_last_digit_and_another_one_does_not(tmp_path: Path) -> None:
    def accuracy(name: str, seed: int | None) -> list[tuple[str, ...]]:
        noisy = method(tmp_path / name, "good", settings={"noise": 2.0})
        run = run_of(tmp_path / name, [noisy], seed=seed, pairs=("first",))
        run_all(run)
        return [
            (result.pair, score["metric"], score["label"], repr(score["value"]))
            for result in collect(run)
            for score in result.report["scores"]
        ]

    first = accuracy("a", None)
    assert len(first) > 15
    assert accuracy("b", None) == first
    assert accuracy("c", 8) != first


@pytest.mark.slow
def test_several_jobs_at_a_time_give_the_same_results(tmp_path: Path) -> None:
    methods = [method(tmp_path, "good", settings={"noise": 1.0}), "initial", method(tmp_path, "raising")]
    one = run_of(tmp_path / "a", methods)
    many = run_of(tmp_path / "b", methods, jobs=3)
    assert run_all(one) == run_all(many) != []
    for pair in ("first", "second"):
        assert scores(one, pair, "good") == scores(many, pair, "good")


def test_no_job_begins_after_the_time_is_up(tmp_path: Path) -> None:
    run = run_of(tmp_path, ["initial"], budget_s=0.0)
    assert run_all(run) == []
    assert collect(run) == []


def test_kept_displacements_can_be_scored_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, [method(tmp_path, "good", settings={"noise": 1.0})], keep_fields=True)
    run_all(run)
    files = run.files("first", "good")
    before = files.read() or {}
    files.write(before | {"scores": []})
    judge_all_again(run)
    assert (files.read() or {})["scores"] == before["scores"]


def test_another_python_runs_a_method_without_what_is_installed_in_this_one(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys\n"
        "from SAMRegistrationLib.benchmark.peers.contract import Outcome\n"
        "def load():\n"
        "    pass\n"
        "def register(task):\n"
        "    import SAMRegistrationLib\n"
        "    facts = {'python': sys.executable, 'torch': 'torch' in sys.modules, 'path': sys.path}\n"
        "    return Outcome((task.initial,), settings=facts)\n"
    )
    link = tmp_path / "other" / "python"
    link.parent.mkdir()
    link.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    link.chmod(0o755)
    run = run_of(tmp_path, [{"name": "probe", "module": str(probe), "python": str(link)}], pairs=("first",))
    finished = run_all(run)
    # Without its site-packages that Python has no numpy: it must say so, not fall back on ours.
    assert finished == ["first probe: failed"] or finished == ["first probe: not installed"]
    assert "numpy" in (run.files("first", "probe").read() or {})["message"]
    run = replace(run, known=Methods([{"name": "probe", "module": str(probe)}]), force=True)
    assert run_all(run) == []
    facts = (run.files("first", "probe").read() or {})["settings"]
    assert facts["torch"] is False
    assert not any(path.endswith("benchmark") for path in facts["path"])


def test_the_command_runs_a_suite_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path, ["initial", method(tmp_path, "missing")])
    record = tmp_path / "record.csv"
    command = ["benchmark", str(suite), "--threads", "1", "--record", str(record)]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    assert "2 did not end well" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "later"), "--report-only"]) == 0
    assert {file.stem for file in (tmp_path / "later" / "results").glob("*/*")} == {"initial"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.csv", "summary.md", "summary.json", "report.html"} <= names
    with (tmp_path / "out" / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["method"] for row in rows} == {"initial", "missing"}


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent as POSIX signals")
@pytest.mark.parametrize(("jobs", "ended_by"), [("1", signal.SIGTERM), ("2", signal.SIGINT)])
def test_an_interrupted_run_ends_its_methods_and_leaves_no_report_of_them(
    tmp_path: Path, jobs: str, ended_by: signal.Signals
) -> None:
    suite = write_suite(tmp_path, [method(tmp_path, "hanging")])
    command = [sys.executable, "-m", "SAMRegistrationLib", "benchmark", str(suite)]
    command += ["-o", str(tmp_path / "out"), "--jobs", jobs, "--threads", "1"]
    # Tests that run in the background of a shell ignore SIGINT, and so would what they start.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    waited_for = tmp_path / "child.pid"
    ends = time.monotonic() + 120
    while not (waited_for.exists() and waited_for.read_text()) and time.monotonic() < ends:
        time.sleep(0.1)
    process.send_signal(ended_by)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "cancelled" in errors
    assert not is_running(int(waited_for.read_text()))
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["benchmark"], 2, "a suite and -o DIR are needed"),
        (["benchmark", "no-such-suite", "-o", "x"], 3, "no suite 'no-such-suite'"),
        (["benchmark", "brain", "-o", "x", "--jobs", "0"], 2, "at least 1"),
        (["benchmark", "brain", "-o", "x", "--python", "syn"], 2, "NAME=INTERPRETER"),
        (["benchmark", "brain", "-o", "x", "--set", "deeds=3"], 2, "NAME.KEY=VALUE"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str], status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_the_list_of_suites_needs_no_torch() -> None:
    code = (
        "import sys; from SAMRegistrationLib.cli import build_parser; "
        "build_parser().parse_args(['benchmark', 'brain', '-o', 'x']); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
