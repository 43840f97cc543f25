"""One method on one pair, in a process of its own, so that its time, memory and crashes are its own.

python -m Testing.benchmarks.job --data DIR --suite S --pair P --method M --out DIR [--start FILE] [--device D]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SAMRegistrationLib.field import DisplacementField, displacement_on
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.metrics import device_peak_memory, peak_memory
from SAMRegistrationLib.transforms import AffineTransform

from .evaluate import evaluate
from .method import Method, Task
from .pairs import Pair, load_pairs
from .registry import find_method

SCHEMA = 1


@dataclass(frozen=True)
class ResultFiles:
    """Where the results of a method on a pair lie in the output folder."""

    out: Path
    pair: str
    method: str

    @property
    def report(self) -> Path:
        return self.out / "results" / self.pair / f"{self.method}.json"

    @property
    def displacement(self) -> Path:
        return self.out / "fields" / self.pair / f"{self.method}.npy"

    def read(self) -> dict[str, Any] | None:
        """The report, or None where there is none."""
        return json.loads(self.report.read_text()) if self.report.is_file() else None

    def write(self, report: dict[str, Any]) -> None:
        """Put the report in place, at once."""
        self.report.parent.mkdir(parents=True, exist_ok=True)
        part = self.report.with_suffix(f".part{os.getpid()}")
        part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        part.replace(self.report)

    def read_displacement(self, pair: Pair) -> DisplacementField:
        """The saved displacement on the grid on which the pair is judged."""
        data = torch.from_numpy(np.load(self.displacement))
        return DisplacementField(data, read_image(pair.judged_volumes[0]).grid)

    def write_displacement(self, field: DisplacementField) -> None:
        self.displacement.parent.mkdir(parents=True, exist_ok=True)
        np.save(self.displacement, field.data.cpu().numpy())


@dataclass(frozen=True)
class Job:
    """One method on one pair.

    Args:
        data: the data folder.
        out: where results go.
        suite: a suite of pairs.json.
        pair: name of a pair of it.
        method: its name, see `registry`.
        start: the method whose saved affine result is the start, if any.
        device: "cpu" or "cuda".
        threads: how many threads it may use.
        keep_field: whether the displacement is saved beside the report.
        own_process: whether nothing else runs in this process, so that its peak memory means something.
    """

    data: Path
    out: Path
    suite: str
    pair: str
    method: str
    start: str | None = None
    device: str = "cpu"
    threads: int = 2
    keep_field: bool = True
    own_process: bool = True

    def as_json(self) -> str:
        """One line, for `from_json`."""
        return json.dumps(self.__dict__ | {"data": str(self.data), "out": str(self.out)})

    @classmethod
    def from_json(cls, line: str) -> Job:
        fields = json.loads(line)
        return cls(**fields | {"data": Path(fields["data"]), "out": Path(fields["out"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("suite", "pair", "method"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--start", help="method whose saved affine result is the start")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-fields", dest="keep_field", action="store_false")
    do_job(Job(**vars(parser.parse_args())))


def do_job(job: Job) -> None:
    """Register, judge, and leave the report (and the displacement) in the output folder."""
    torch.set_num_threads(job.threads)
    pair = load_pairs(job.data, job.suite, [job.pair])[0].prepared(job.out / "inputs")
    files = ResultFiles(job.out, pair.name, job.method)
    start, start_seconds = None, None
    if job.start:
        start, start_seconds = saved_affine(job.out, pair.name, job.start)
    method = find_method(job.method).method
    report, field = run_method(method, pair, start, job.device)
    if not job.own_process:
        report |= {"peak_memory_mib": None, "memory_before_mib": None}
    report |= {"suite": job.suite, "pair": pair.name, "family": pair.family, "method": job.method}
    report |= {"start": job.start, "start_seconds": start_seconds, "threads": job.threads}
    if job.keep_field:
        files.write_displacement(field)
    report["scores"] = [score.as_row() for score in evaluate(pair, field)]
    files.write(report)


def saved_affine(out: Path, pair: str, method: str) -> tuple[AffineTransform, float]:
    """The affine result of an earlier run, and the seconds that it took.

    Raises:
        ValueError: if there is none.
    """
    report = ResultFiles(out, pair, method).read()
    if not report or "matrix" not in report:
        raise ValueError(f"{method} left no affine result on {pair}")
    return AffineTransform(np.asarray(report["matrix"])), report["seconds"]


def run_method(
    method: Method, pair: Pair, start: AffineTransform | None, device: str
) -> tuple[dict[str, Any], DisplacementField]:
    """Register a pair; its report without scores, and the displacement in mm on the grid where it is judged."""
    method.load()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        # Starting CUDA is no part of the method's time.
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    memory_before = peak_memory()
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        began = time.perf_counter()
        outcome = method.run(Task(pair, start, device, Path(folder)))
        total = time.perf_counter() - began
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "done",
        "seconds": total,
        "stages": outcome.seconds,
        "peak_memory_mib": peak_memory(),
        "memory_before_mib": memory_before,
        "device": device,
        "device_memory_mib": device_peak_memory(device) if on_gpu else None,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "revision": _revision(),
        "settings": outcome.settings,
        "warnings": list(outcome.warnings),
    }
    if isinstance(outcome.transform, AffineTransform):
        report["matrix"] = outcome.transform.matrix.tolist()
    return report, displacement_on(outcome.transform, read_image(pair.judged_volumes[0]).grid)


@functools.cache
def _revision() -> str | None:
    """The commit of this repository that was measured, or None outside a checkout."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
