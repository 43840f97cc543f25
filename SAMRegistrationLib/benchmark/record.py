"""Results as one small table, kept with the code, so that another machine can add to them without doing all again.

One row per method and pair; a column is a name in the report (`seconds`), one in a part of it (`stages|align`), or
a score (`scores|METRIC|LABEL|GROUP|1`, 0 where it does not count). Numbers have six digits that matter. Settings
but for the preset, warnings and pictures are left out, and so is what was not installed, which says nothing
elsewhere.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .results import ResultFiles
from .tables import COSTS

TEXTS = ("pair", "method", "start", "suite", "family", "status", "message", "revision", "machine", "device")
NUMBERS = ("schema", "threads", *COSTS)


def write_record(out: Path, file: Path) -> None:
    """Put all results of an output folder into a file, ordered by pair and method."""
    reports = [json.loads(path.read_text()) for path in sorted(out.glob("results/*/*.json"))]
    rows = [_row(report) for report in reports if report["status"] != "not installed"]
    # The fullest rows know the order of labels and stages.
    fullest_first = sorted(rows, key=len, reverse=True)
    columns = dict.fromkeys([*TEXTS, *(column for row in fullest_first for column in row)])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_record(file: Path, out: Path) -> None:
    """Put the results of a file into an output folder, save those that are there already.

    Raises:
        InputError: if the file is no such table.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reports = [_report(row) for row in csv.DictReader(stream)]
        places = [ResultFiles(out, report["pair"], report["method"]) for report in reports]
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{file} is no record of benchmark results: {error!r}") from error
    for files, report in zip(places, reports, strict=True):
        if files.read() is None:
            files.write(report)


def _row(report: dict[str, Any]) -> dict[str, str]:
    row = {name: report[name] for name in TEXTS if report.get(name) is not None}
    row |= {name: _text(report[name]) for name in NUMBERS if report.get(name) is not None}
    row |= {f"stages|{stage}": _text(seconds) for stage, seconds in report.get("stages", {}).items()}
    if preset := report.get("settings", {}).get("preset"):
        row["preset"] = preset
    if "matrix" in report:
        row["matrix"] = " ".join(f"{value:.9g}" for value in np.ravel(report["matrix"]))
    for score in report["scores"]:
        place = (score["metric"], score["label"], score["group"], str(int(score["scored"])))
        row["|".join(["scores", *place])] = _text(score["value"])
    return row


def _report(row: dict[str, str]) -> dict[str, Any]:
    report: dict[str, Any] = {**dict.fromkeys(("start", "start_seconds")), "stages": {}, "scores": []}
    for column, text in row.items():
        kind, _, place = column.partition("|")
        if not text:
            continue
        if kind == "scores":
            metric, label, group, scored = place.split("|")
            score = {"metric": metric, "value": json.loads(text), "label": label, "group": group}
            report["scores"].append(score | {"scored": scored == "1"})
        elif kind == "stages":
            report["stages"][place] = json.loads(text)
        elif kind == "preset":
            report["settings"] = {"preset": text}
        elif kind == "matrix":
            report["matrix"] = np.reshape([float(value) for value in text.split()], (4, 4)).tolist()
        else:
            report[kind] = text if kind in TEXTS else json.loads(text)
    return report


def _text(value: float | None) -> str:
    """JSON, so that a score that is unknown differs from one that is not there."""
    return "null" if value is None else f"{value:.6g}"
