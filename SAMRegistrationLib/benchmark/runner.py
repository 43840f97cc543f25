"""Run methods on pairs, each in its own process with a time limit; results that are there are not made again."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .judge import judge, judge_again
from .methods import Method, Methods
from .pairs import Pair
from .processes import End, Jobs, run_job
from .results import SCHEMA, Result, ResultFiles, Results
from .suite import Suite


@dataclass(frozen=True)
class Run:
    """What to run and how.

    Args:
        suite: the pairs and metrics.
        out: where results go.
        methods: method names; the suite's where empty.
        known: the methods that names refer to.
        pairs: only these pairs or families; all where empty.
        limit_s: seconds after which a method is stopped; the suite's where None.
        device: "cpu" or "cuda".
        threads: how many threads a method may use.
        seed: of everything random; the suite's where None.
        force: run again what is there already.
        retry: run again what failed.
        jobs: how many processes work at a time; times and device memory mean most with one.
        keep_fields: whether displacements are saved, to be scored again later.
        budget_s: seconds after which no further job is begun.
    """

    suite: Suite
    out: Path
    methods: tuple[str, ...] = ()
    known: Methods = field(default_factory=Methods)
    pairs: tuple[str, ...] = ()
    limit_s: float | None = None
    device: str = "cpu"
    threads: int = 2
    seed: int | None = None
    force: bool = False
    retry: bool = False
    jobs: int = 1
    keep_fields: bool = False
    budget_s: float = math.inf

    def load_pairs(self) -> list[Pair]:
        return self.suite.pairs(self.pairs)

    def method_names(self) -> list[str]:
        """What to run, starts first."""
        of_suite = [entry if isinstance(entry, str) else entry["name"] for entry in self.suite.methods]
        return self.known.with_starts(self.methods or of_suite)

    def files(self, pair: str, method: str) -> ResultFiles:
        return ResultFiles(self.out, pair, method)


@dataclass(frozen=True)
class _Job:
    pair: Pair
    method: Method


def run_all(run: Run) -> list[str]:
    """Do whatever is missing, pair by pair, and say so line by line.

    Returns:
        `PAIR METHOD: STATUS` of every job that did not end well.
    """
    torch.set_num_threads(run.threads)
    methods = [run.known.find(name) for name in run.method_names()]
    wanted = [
        _Job(pair, method)
        for pair in run.load_pairs()
        for method in methods
        if _wanted(run, run.files(pair.name, method.name).read())
    ]
    ends = time.monotonic() + run.budget_s
    jobs = Jobs()
    try:
        reports = _side_by_side(run, wanted, jobs, ends) if run.jobs > 1 else _one_by_one(run, wanted, jobs, ends)
    finally:
        jobs.stop()
    if len(reports) < len(wanted):
        print(f"{len(wanted) - len(reports)} not begun within {run.budget_s:g} s", flush=True)
    return [f"{r['pair']} {r['method']}: {r['status']}" for r in reports if r["status"] != "done"]


def _one_by_one(run: Run, wanted: list[_Job], jobs: Jobs, ends: float) -> list[dict[str, Any]]:
    return [report for job in wanted if (report := _do(run, job, jobs, ends))]


def _side_by_side(run: Run, wanted: list[_Job], jobs: Jobs, ends: float) -> list[dict[str, Any]]:
    """Methods that start from another's result come when that is there."""
    reports: list[dict[str, Any]] = []
    with ThreadPoolExecutor(run.jobs) as pool:
        try:
            for later in (False, True):
                phase = [job for job in wanted if bool(job.method.start) is later]
                reports += [report for report in pool.map(lambda job: _do(run, job, jobs, ends), phase) if report]
        except BaseException:
            # The pool waits for its threads, and they for their processes.
            jobs.stop()
            raise
    return reports


def judge_all_again(run: Run) -> None:
    """Score the kept displacements anew, without registering."""
    for pair in run.load_pairs():
        for method in run.method_names():
            files = run.files(pair.name, method)
            report = files.read()
            if report and report["status"] == "done" and files.displacement.is_file():
                ready = pair.prepared(run.out / "inputs")
                report["scores"] = [s.as_row() for s in judge_again(ready, run.suite.metrics, files)]
                files.write(report)
                print(f"{pair.name}  {method}  scored again", flush=True)


def collect(run: Run) -> Results:
    """All reports of a run, failures included, in the order of pairs and methods."""
    results = []
    for pair in run.load_pairs():
        for method in run.method_names():
            files = run.files(pair.name, method)
            report = files.read()
            if report is not None:
                slices = files.slices if files.slices.is_file() else None
                results.append(Result(pair.name, pair.family, method, report, slices))
    return results


def _wanted(run: Run, report: dict[str, Any] | None) -> bool:
    return run.force or report is None or (run.retry and report["status"] != "done")


def _do(run: Run, job: _Job, jobs: Jobs, ends: float) -> dict[str, Any] | None:
    """The report of a job; None if it is too late to begin, or everything was stopped."""
    if time.monotonic() >= ends or jobs.stopped:
        return None
    files = run.files(job.pair.name, job.method.name)
    try:
        report = _registered(run, job, files, jobs)
    except Exception as error:
        # Whatever one job dies of, the next one has its turn.
        report = _unfinished(End("failed", f"{type(error).__name__}: {error}"))
    if jobs.stopped:
        return None
    report |= {"suite": run.suite.name, "pair": job.pair.name, "family": job.pair.family}
    report |= {"method": job.method.name, "device": run.device, "threads": run.threads}
    files.write(report)
    print(f"{job.pair.name}  {job.method.name}  {_in_a_word(report)}\n", end="", flush=True)
    return report


def _registered(run: Run, job: _Job, files: ResultFiles, jobs: Jobs) -> dict[str, Any]:
    pair, method = job.pair.prepared(run.out / "inputs"), job.method
    start, start_seconds = _start(run, pair, method.start)
    limit = method.limit_s or run.limit_s or run.suite.limit_s
    with tempfile.TemporaryDirectory(prefix="benchmark_") as name:
        task = {
            "fixed": str(pair.fixed),
            "moving": str(pair.moving),
            "initial": pair.start_matrix().tolist(),
            "start": start,
            "same_contrast": pair.same_contrast,
            "device": run.device,
            "threads": run.threads,
            "seed": run.suite.seed if run.seed is None else run.seed,
            "folder": str(Path(name).resolve()),
        }
        end = run_job(method, task, limit, files.log, jobs)
        if end.status != "done":
            return _unfinished(end)
        report = {"schema": SCHEMA, "status": "done", **json.loads(Path(name, "outcome.json").read_text())}
        verdict = judge(pair, report.pop("parts"), run.suite.metrics, files, run.keep_fields)
    report |= {"start": method.start, "start_seconds": start_seconds, "revision": _revision()}
    if verdict.matrix is not None:
        report["matrix"] = verdict.matrix
    return report | {"scores": [score.as_row() for score in verdict.scores]}


def _start(run: Run, pair: Pair, method: str | None) -> tuple[list[list[float]] | None, float | None]:
    """The affine result of an earlier job, and the seconds that it took.

    Raises:
        ValueError: if there is none.
    """
    if method is None:
        return None, None
    report = run.files(pair.name, method).read()
    if not report or "matrix" not in report:
        raise ValueError(f"{method} left no affine result on {pair.name}")
    return np.asarray(report["matrix"]).tolist(), report["seconds"]


def _unfinished(end: End) -> dict[str, Any]:
    return {"schema": SCHEMA, "status": end.status, "message": end.message, "scores": []}


@functools.cache
def _revision() -> str | None:
    """The commit of the code that was measured, or None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ended.stdout.strip()


def _in_a_word(report: dict[str, Any]) -> str:
    if report["status"] != "done":
        return f"{report['status']}: {report['message']}"
    dice = [s["value"] for s in report["scores"] if s["metric"] == "dice" and s["scored"]]
    errors = [s["value"] for s in report["scores"] if s["metric"] in ("tre_mean_mm", "error_mean_mm")]
    parts = [f"{report['seconds']:.1f} s"]
    parts += [f"Dice {sum(dice) / len(dice):.3f}"] if dice else []
    parts += [f"error {error:.2f} mm" for error in errors]
    return ", ".join(parts)
