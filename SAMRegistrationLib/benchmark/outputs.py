"""What a run leaves to be read: results.csv, summary.md, summary.json, report.html."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .measures import ACCURACY, COLUMNS, REFERENCE, SECONDS, known, values_of
from .results import Results, families_of, methods_of
from .runner import Run, collect
from .statistics import bootstrap_mean, compare
from .tables import markdown, write_between_markers, write_csv


def write_outputs(run: Run, markdown_file: Path | None = None) -> Path:
    """Write everything that can be said of the results that are there; returns the HTML report.

    Args:
        run: whose results.
        markdown_file: also put the tables between the suite's markers in this file.
    """
    results = collect(run)
    seed = run.suite.seed if run.seed is None else run.seed
    run.out.mkdir(parents=True, exist_ok=True)
    write_csv(results, run.out / "results.csv")
    tables = markdown(results, seed)
    (run.out / "summary.md").write_text(
        f"# {run.suite.name}\n\n{run.suite.description}\n{tables}", encoding="utf-8"
    )
    (run.out / "summary.json").write_text(json.dumps(summary(results, seed), indent=1) + "\n", encoding="utf-8")
    if markdown_file is not None:
        write_between_markers(tables, run.suite.name, markdown_file)
    return _write_report(run, results, seed)


def _write_report(run: Run, results: Results, seed: int) -> Path:
    from .html_report import html_report

    path = run.out / "report.html"
    path.write_text(html_report(run.suite, results, seed), encoding="utf-8")
    return path


def summary(results: Results, seed: int) -> dict[str, Any]:
    """Per family and method: every measure's mean, interval and count of pairs; and the paired tests."""
    return {family: _family([r for r in results if r.family == family], seed) for family in families_of(results)}


def _family(results: Results, seed: int) -> dict[str, Any]:
    methods = {}
    for method in methods_of(results):
        of_method = [result for result in results if result.method == method]
        statuses = [result.report["status"] for result in of_method]
        measures = {}
        for column in (*COLUMNS, SECONDS):
            values = list(values_of(results, method, column).values())
            if known(values):
                measures[column.title] = {"pairs": len(values), **asdict(bootstrap_mean(values, seed))}
        methods[method] = {"status": {s: statuses.count(s) for s in set(statuses)}, "measures": measures}
    comparisons = [
        _without_nan(asdict(one)) for column in ACCURACY for one in compare(results, REFERENCE, column, seed)
    ]
    return {"methods": methods, "reference": REFERENCE, "comparisons": comparisons}


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}
