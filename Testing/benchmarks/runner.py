"""Run methods on pairs, one process at a time, each with a time limit; results present are not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .evaluate import evaluate
from .job import SCHEMA, ResultFiles
from .pairs import Pair, load_pairs
from .registry import find_method, with_starts

REPOSITORY = Path(__file__).resolve().parents[2]
JOB_MODULE = "Testing.benchmarks.job"


@dataclass(frozen=True)
class Run:
    """What to run and how.

    Args:
        data: the data folder.
        out: where results go; outside the repository.
        suite: a suite of pairs.json.
        methods: method names, see `registry`.
        pairs: only these pairs or families; all where empty.
        limit_s: seconds after which a method is stopped.
        device: "cpu" or "cuda".
        threads: how many threads a method may use.
        force: run again what is there already.
        retry: run again what failed.
    """

    data: Path
    out: Path
    suite: str
    methods: tuple[str, ...]
    pairs: tuple[str, ...] = ()
    limit_s: float = 1200.0
    device: str = "cpu"
    threads: int = 2
    force: bool = False
    retry: bool = False

    def load_pairs(self) -> list[Pair]:
        return load_pairs(self.data, self.suite, self.pairs or None)

    def files(self, pair: Pair, method: str) -> ResultFiles:
        return ResultFiles(self.out, pair.name, method)


def run_all(run: Run) -> None:
    """Do whatever is missing, pair by pair, and say so line by line."""
    for pair in run.load_pairs():
        for method in with_starts(list(run.methods)):
            files = run.files(pair, method)
            if not _wanted(run, files.read()):
                continue
            report = _run_one(run, pair, method)
            print(f"{pair.name}  {method}  {_in_a_word(report)}", flush=True)


def evaluate_again(run: Run) -> None:
    """Score the saved displacements anew, without registering: after a change of metrics or labels."""
    for pair, method, report in done_reports(run):
        files = run.files(pair, method)
        ready = pair.prepared(run.out / "inputs")
        report["scores"] = [score.as_row() for score in evaluate(ready, files.read_displacement(ready))]
        files.write(report)
        print(f"{pair.name}  {method}  scored again", flush=True)


def done_reports(run: Run) -> Iterator[tuple[Pair, str, dict[str, Any]]]:
    """Pair, method and report of all runs that ended well."""
    for pair in run.load_pairs():
        for method in with_starts(list(run.methods)):
            report = run.files(pair, method).read()
            if report and report["status"] == "done":
                yield pair, method, report


def _wanted(run: Run, report: dict[str, Any] | None) -> bool:
    return run.force or report is None or (run.retry and report["status"] != "done")


def _run_one(run: Run, pair: Pair, method: str) -> dict[str, Any]:
    """One job; a report is left in any case."""
    files = run.files(pair, method)
    status, message = _run_job(run, pair, method)
    if status == "done":
        report = files.read()
        if report is not None:
            return report
        status, message = "failed", "the job ended without a report"
    failure = {
        "schema": SCHEMA,
        "status": status,
        "message": message,
        "suite": run.suite,
        "pair": pair.name,
        "family": pair.family,
        "method": method,
        "device": run.device,
        "scores": [],
    }
    files.write(failure)
    return failure


def _run_job(run: Run, pair: Pair, method: str) -> tuple[str, str]:
    """Status ("done", "failed", "time limit") and the last line that the job said on stderr."""
    command = [sys.executable, "-m", JOB_MODULE, "--data", str(run.data), "--out", str(run.out)]
    command += ["--suite", run.suite, "--pair", pair.name, "--method", method]
    command += ["--device", run.device, "--threads", str(run.threads)]
    if start := find_method(method).start:
        command += ["--start", start]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=_environment(run.threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=run.limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "time limit", f"stopped after {run.limit_s:g} s"
    if process.returncode == 0:
        return "done", ""
    said = errors.strip().splitlines()
    return "failed", said[-1] if said else f"ended with status {process.returncode}"


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return os.environ | {name: str(threads) for name in names}


def _in_a_word(report: dict[str, Any]) -> str:
    if report["status"] != "done":
        return f"{report['status']}: {report['message']}"
    dice = [s["value"] for s in report["scores"] if s["metric"] == "dice" and s["scored"]]
    errors = [s["value"] for s in report["scores"] if s["metric"] in ("tre_mean_mm", "error_mean_mm")]
    parts = [f"{report['seconds']:.1f} s"]
    parts += [f"Dice {sum(dice) / len(dice):.3f}"] if dice else []
    parts += [f"error {error:.2f} mm" for error in errors]
    return ", ".join(parts)
