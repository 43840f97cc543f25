"""Reports into a tidy CSV and the Markdown tables of RESULTS.md."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .runner import Run

GOOD_CENTER_MM = 25.0
Cell = Callable[["Results"], str]


@dataclass(frozen=True)
class Result:
    """The report of one method on one pair."""

    pair: str
    family: str
    method: str
    report: dict[str, Any]

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
        values = self.values(metric, group)
        return float(np.mean(values)) if values else float("nan")

    @property
    def seconds(self) -> float:
        """Time of the method and of the start it was given."""
        return float(self.report["seconds"] + (self.report.get("start_seconds") or 0.0))

    @property
    def gibibytes(self) -> float:
        """Peak resident memory of the process; NaN where it did other jobs too."""
        peak = self.report["peak_memory_mib"]
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


def collect(run: Run) -> Results:
    """All reports of a run, failures included, in the order of pairs and methods."""
    return [
        Result(pair.name, pair.family, method, report)
        for pair in run.load_pairs()
        for method in run.methods_for(pair)
        if (report := run.files(pair, method).read()) is not None
    ]


def write_csv(results: Results, path: Path) -> None:
    """One row per number: family, pair, method, metric, label, group, scored, value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["family", "pair", "method", "metric", "label", "group", "scored", "value"])
        for result in results:
            head = [result.family, result.pair, result.method]
            writer.writerow([*head, "status", "", "", "", result.report["status"]])
            for name in ("seconds", "peak_memory_mib", "device_memory_mib"):
                if result.report.get(name) is not None:
                    writer.writerow([*head, name, "", "", "", result.report[name]])
            for score in result.report["scores"]:
                value = "" if score["value"] is None else score["value"]
                writer.writerow([*head, score["metric"], score["label"], score["group"], score["scored"], value])


def write_results(tables: str, suite: str, path: Path) -> None:
    """Put tables in the place of what stands between the markers of the suite in a Markdown file.

    Raises:
        ValueError: if the file lacks the markers.
    """
    begin, end = f"<!-- {suite}: begin -->", f"<!-- {suite}: end -->"
    text = path.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{path} has no markers {begin} and {end}")
    before, rest = text.split(begin, 1)
    path.write_text(f"{before}{begin}\n{tables}{end}{rest.split(end, 1)[1]}")


def markdown(results: Results) -> str:
    """All tables of a suite."""
    families = list(dict.fromkeys(result.family for result in results))
    sections = [_overall(results)]
    for family in families:
        of_family = [result for result in results if result.family == family]
        sections.append(f"### {family}\n\n{_summary(of_family)}")
        if groups := _groups(of_family):
            sections.append(f"Dice in % per label group.\n\n{_group_table(of_family, groups)}")
    return "\n".join(["", *sections])


def _overall(results: Results) -> str:
    labelled = [result for result in results if result.values("dice") or not result.done]
    columns: dict[str, Cell] = {
        "pairs": count,
        "mean Dice %": lambda rows: percent(row.mean("dice") for row in rows),
        "worst folded %": lambda rows: number((row.mean("folded_percent") for row in rows), np.max, 3),
    }
    return f"### All labelled pairs\n\n{method_table(labelled, columns)}"


def _summary(results: Results) -> str:
    columns: dict[str, Cell] = {
        "pairs": count,
        "Dice %": lambda rows: percent(row.mean("dice") for row in rows),
        "HD95 mm": lambda rows: number((row.mean("hd95_mm") for row in rows), np.mean, 1),
        "centers mm": lambda rows: number((row.mean("center_mm") for row in rows), np.mean, 1),
        "all centers in 25 mm": _aligned,
        "TRE mm": lambda rows: number((row.mean("tre_mean_mm") for row in rows), np.mean, 2),
        "TRE p95 mm": lambda rows: number((row.mean("tre_p95_mm") for row in rows), np.mean, 2),
        "error mm": lambda rows: number((row.mean("error_mean_mm") for row in rows), np.mean, 2),
        "error p95 mm": lambda rows: number((row.mean("error_p95_mm") for row in rows), np.mean, 2),
        "worst error mm": lambda rows: number((row.mean("error_mean_mm") for row in rows), np.max, 2),
        "spine moved mm": lambda rows: number((row.mean("still_mean_mm") for row in rows), np.mean, 2),
        "folded %": lambda rows: number((row.mean("folded_percent") for row in rows), np.mean, 3),
        "SDlogJ": lambda rows: number((row.mean("sdlogj_l2r") for row in rows), np.mean, 3),
        "s": lambda rows: number((row.seconds for row in rows), np.mean, 1),
        "GiB": lambda rows: number((row.gibibytes for row in rows), np.max, 1),
    }
    return method_table(results, columns)


def _groups(results: Results) -> list[str]:
    named = (score["group"] for result in results for score in result.report["scores"])
    return list(dict.fromkeys(group for group in named if group))


def _group_table(results: Results, groups: Sequence[str]) -> str:
    def of_group(group: str) -> Cell:
        return lambda rows: percent(row.mean("dice", group) for row in rows)

    return method_table(results, {group: of_group(group) for group in groups})


def method_table(results: Results, columns: dict[str, Cell]) -> str:
    """One row per method; columns that say nothing for any method are left out."""
    methods = list(dict.fromkeys(result.method for result in results))
    rows = {name: [result for result in results if result.method == name] for name in methods}
    cells = {
        name: {
            title: cell([r for r in of_method if r.done] if cell is not count else of_method)
            for title, cell in columns.items()
        }
        for name, of_method in rows.items()
    }
    titles = [title for title in columns if any(cells[name][title] for name in methods)]
    lines = [f"| method | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(titles)]
    lines += [f"| {name} | " + " | ".join(cells[name][title] for title in titles) + " |" for name in methods]
    return "\n".join(lines) + "\n"


def count(results: Results) -> str:
    """How many pairs were done, of how many."""
    done = sum(result.done for result in results)
    return str(done) if done == len(results) else f"{done} of {len(results)}"


def _aligned(results: Results) -> str:
    labelled = [result for result in results if result.values("dice")]
    return str(sum(result.aligned for result in labelled)) if labelled else ""


def percent(values: Iterable[float]) -> str:
    """The mean of shares in %."""
    return number((100 * value for value in values), np.mean, 1)


def number(values: Iterable[float], summary: Callable[[Any], Any], digits: int) -> str:
    """A summary of the values that are known; empty where none is."""
    known = [value for value in values if not np.isnan(value)]
    return f"{summary(known):.{digits}f}" if known else ""
