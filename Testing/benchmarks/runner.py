"""Run methods on pairs, each with a time limit; results that are there are not made again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .evaluate import evaluate
from .job import SCHEMA, Job, ResultFiles
from .pairs import Pair, load_pairs
from .processes import End, Worker, run_in_own_process
from .registry import PEERS, find_method, with_starts
from .suites import default_methods


@dataclass(frozen=True)
class Run:
    """What to run and how.

    Args:
        data: the data folder.
        out: where results go; outside the repository.
        suite: a suite of pairs.json.
        methods: method names, see `registry`; those that the suite is about where empty.
        pairs: only these pairs or families; all where empty.
        limit_s: seconds after which a method is stopped.
        device: "cpu" or "cuda".
        threads: how many threads a method may use.
        force: run again what is there already.
        retry: run again what failed.
        jobs: how many processes work at a time. One starts a fresh process for every job, which measures its
            memory; more keep their processes, which saves the start.
        keep_fields: whether displacements are saved, to be scored again later.
        budget_s: seconds after which no further job is begun.
    """

    data: Path
    out: Path
    suite: str
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    limit_s: float = 1200.0
    device: str = "cpu"
    threads: int = 2
    force: bool = False
    retry: bool = False
    jobs: int = 1
    keep_fields: bool = True
    budget_s: float = math.inf

    def load_pairs(self) -> list[Pair]:
        return load_pairs(self.data, self.suite, self.pairs or None)

    def methods_for(self, pair: Pair) -> list[str]:
        """What to run on a pair, starts first."""
        return with_starts(list(self.methods or default_methods(self.suite, pair.family)))

    def files(self, pair: Pair, method: str) -> ResultFiles:
        return ResultFiles(self.out, pair.name, method)

    def job(self, pair: Pair, method: str) -> Job:
        return Job(
            data=self.data,
            out=self.out,
            suite=self.suite,
            pair=pair.name,
            method=method,
            start=find_method(method).start,
            device=self.device,
            threads=self.threads,
            keep_field=self.keep_fields,
            own_process=self.jobs == 1,
        )


def run_all(run: Run) -> list[str]:
    """Do whatever is missing, and say so line by line.

    Returns:
        `PAIR METHOD` of every job that failed.
    """
    wanted = [
        (pair, method)
        for pair in run.load_pairs()
        for method in run.methods_for(pair)
        if _wanted(run, run.files(pair, method).read())
    ]
    ends = time.monotonic() + run.budget_s
    reports = _run_one_by_one(run, wanted, ends) if run.jobs == 1 else _run_side_by_side(run, wanted, ends)
    if len(reports) < len(wanted):
        print(f"{len(wanted) - len(reports)} not begun within {run.budget_s:g} s", flush=True)
    return [f"{report['pair']} {report['method']}" for report in reports if report["status"] != "done"]


def _run_one_by_one(run: Run, wanted: list[tuple[Pair, str]], ends: float) -> list[dict[str, Any]]:
    """Reports of the jobs that were begun in time, each done in a process of its own."""
    reports = []
    for one in wanted:
        if time.monotonic() < ends:
            reports.append(_recorded(run, *one, run_in_own_process(run.job(*one), run.limit_s)))
    return reports


def _run_side_by_side(run: Run, wanted: list[tuple[Pair, str]], ends: float) -> list[dict[str, Any]]:
    """The same in several lasting processes; methods that start from another's result come after all others."""
    own = threading.local()
    workers: list[Worker] = []

    def work(one: tuple[Pair, str]) -> dict[str, Any] | None:
        if time.monotonic() >= ends:
            return None
        if not hasattr(own, "worker"):
            own.worker = Worker(run.threads)
            workers.append(own.worker)
        return _recorded(run, *one, own.worker.do(run.job(*one), run.limit_s))

    # The long ones first, peers (on the CPU) and large volumes, so that the last job to end is a short one.
    wanted = sorted(wanted, key=lambda one: (one[1] not in PEERS, -one[0].fixed.stat().st_size))
    first = [one for one in wanted if find_method(one[1]).start is None]
    second = [one for one in wanted if find_method(one[1]).start is not None]
    try:
        with ThreadPoolExecutor(run.jobs) as pool:
            reports = [report for phase in (first, second) for report in list(pool.map(work, phase))]
            return [report for report in reports if report is not None]
    finally:
        for worker in workers:
            worker.stop()


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
        for method in run.methods_for(pair):
            report = run.files(pair, method).read()
            if report and report["status"] == "done":
                yield pair, method, report


def _wanted(run: Run, report: dict[str, Any] | None) -> bool:
    return run.force or report is None or (run.retry and report["status"] != "done")


def _recorded(run: Run, pair: Pair, method: str, end: End) -> dict[str, Any]:
    """The report of a job that ended; one is left in any case."""
    files = run.files(pair, method)
    report = files.read() if end.status == "done" else None
    if report is None:
        done_without = end.status == "done"
        report = {
            "schema": SCHEMA,
            "status": "failed" if done_without else end.status,
            "message": "the job ended without a report" if done_without else end.message,
            "suite": run.suite,
            "pair": pair.name,
            "family": pair.family,
            "method": method,
            "device": run.device,
            "scores": [],
        }
        files.write(report)
    print(f"{pair.name}  {method}  {_in_a_word(report)}\n", end="", flush=True)
    return report


def _in_a_word(report: dict[str, Any]) -> str:
    if report["status"] != "done":
        return f"{report['status']}: {report['message']}"
    dice = [s["value"] for s in report["scores"] if s["metric"] == "dice" and s["scored"]]
    errors = [s["value"] for s in report["scores"] if s["metric"] in ("tre_mean_mm", "error_mean_mm")]
    parts = [f"{report['seconds']:.1f} s"]
    parts += [f"Dice {sum(dice) / len(dice):.3f}"] if dice else []
    parts += [f"error {error:.2f} mm" for error in errors]
    return ", ".join(parts)
