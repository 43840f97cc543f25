"""What a run leaves in its folder: a report for every method on every pair, and what pictures are made of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 2
GOOD_CENTER_MM = 25.0


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

    @property
    def slices(self) -> Path:
        return self.out / "slices" / self.pair / f"{self.method}.npz"

    @property
    def log(self) -> Path:
        return self.out / "logs" / self.pair / f"{self.method}.txt"

    def read(self) -> dict[str, Any] | None:
        """The report, or None where there is none."""
        return json.loads(self.report.read_text()) if self.report.is_file() else None

    def write(self, report: dict[str, Any]) -> None:
        """Put the report in place, at once."""
        self.report.parent.mkdir(parents=True, exist_ok=True)
        part = self.report.with_suffix(f".part{os.getpid()}")
        part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        part.replace(self.report)


@dataclass(frozen=True)
class Result:
    """The report of one method on one pair."""

    pair: str
    family: str
    method: str
    report: dict[str, Any]
    slices: Path | None = None

    @property
    def done(self) -> bool:
        return self.report["status"] == "done"

    def values(self, metric: str, group: str | None = None) -> list[float]:
        """A metric's values over the labels that count, or over all labels of one group."""
        return [
            score["value"]
            for score in self.report["scores"]
            if score["metric"] == metric
            and score["value"] is not None
            and (score["scored"] if group is None else score["group"] == group)
        ]

    def mean(self, metric: str, group: str | None = None) -> float:
        """The mean of those values; NaN where there are none."""
        values = self.values(metric, group)
        return float(np.mean(values)) if values else math.nan

    @property
    def groups(self) -> list[str]:
        """The label groups that were scored."""
        return list(dict.fromkeys(score["group"] for score in self.report["scores"] if score["group"]))

    @property
    def seconds(self) -> float:
        """Time of the method and of the start it was given; NaN where it did not end."""
        if not self.done:
            return math.nan
        return float(self.report["seconds"] + (self.report.get("start_seconds") or 0.0))

    @property
    def gibibytes(self) -> float:
        """Peak resident memory of the process; NaN where it is not known."""
        peak = self.report.get("peak_memory_mib")
        return math.nan if peak is None else peak / 1024

    @property
    def device_gibibytes(self) -> float:
        """Peak memory that was allocated on the GPU; NaN without one."""
        peak = self.report.get("device_memory_mib")
        return math.nan if peak is None else peak / 1024

    @property
    def worst_center(self) -> float:
        """The largest distance in mm of an organ's center from where it should be; infinite where one is lost."""
        centers = [s["value"] for s in self.report["scores"] if s["metric"] == "center_mm"]
        return max((math.inf if center is None else center for center in centers), default=math.inf)

    @property
    def aligned(self) -> bool:
        """Whether every organ's center is where it should be."""
        return self.worst_center <= GOOD_CENTER_MM


Results = list[Result]
Measure = Callable[[Result], float]


def methods_of(results: Results) -> list[str]:
    """The methods in the order in which they come."""
    return list(dict.fromkeys(result.method for result in results))


def families_of(results: Results) -> list[str]:
    """The families in the order in which they come."""
    return list(dict.fromkeys(result.family for result in results))
