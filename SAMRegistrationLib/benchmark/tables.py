"""Reports into a tidy CSV and Markdown tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import robust_value
from .measures import (
    ACCURACY,
    COLUMNS,
    DEVICE_GIBIBYTES,
    DICE,
    FOLDED,
    GIBIBYTES,
    REFERENCE,
    SECONDS,
    Column,
    known,
)
from .results import Results, families_of, methods_of
from .statistics import Comparison, compare

Cell = Callable[[Results], str]
CSV_HEADER = ("suite", "family", "pair", "method", "start", "metric", "label", "group", "scored", "value")
COSTS = ("seconds", "start_seconds", "peak_memory_mib", "memory_before_mib", "device_memory_mib")


def write_csv(results: Results, path: Path) -> None:
    """One row per number: scores, status, seconds (whole and per stage) and memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_HEADER)
        for result in results:
            report = result.report
            head = [report.get("suite", ""), result.family, result.pair, result.method, report.get("start") or ""]
            writer.writerows([*head, *row] for row in _csv_rows(report))


def _csv_rows(report: dict[str, Any]) -> Iterator[list[Any]]:
    yield ["status", "", "", "", report["status"]]
    for name in COSTS:
        if report.get(name) is not None:
            yield [name, "", "", "", report[name]]
    for stage, seconds in report.get("stages", {}).items():
        yield ["stage_seconds", stage, "", "", seconds]
    for score in report["scores"]:
        value = "" if score["value"] is None else repr(score["value"])
        yield [score["metric"], score["label"], score["group"], score["scored"], value]


def markdown(results: Results, seed: int) -> str:
    """All tables of a suite."""
    sections = [_overall(results)] if len(families_of(results)) > 1 else []
    for family in families_of(results):
        of_family = [result for result in results if result.family == family]
        sections.append(f"### {family}\n\n{summary(of_family)}")
        if groups := groups_of(of_family):
            sections.append(f"Dice in % per label group.\n\n{group_table(of_family, groups)}")
        if paired := comparison_table(of_family, seed):
            sections.append(paired)
        if stages := stage_table(of_family):
            sections.append(f"Median seconds per stage.\n\n{stages}")
    if failures := failure_list(results):
        sections.append(f"Not done:\n\n{failures}")
    return "\n".join(["", *sections])


def _overall(results: Results) -> str:
    labelled = [result for result in results if result.values("dice") or not result.done]
    columns: dict[str, Cell] = {
        "pairs": count,
        "mean Dice %": _cell(DICE, np.mean),
        "worst folded %": _cell(FOLDED, np.max),
    }
    return f"### All labelled pairs\n\n{method_table(labelled, columns)}" if labelled else ""


def summary(results: Results) -> str:
    """A family's table: means over pairs, the worst error, shares of aligned pairs, time and memory."""
    columns: dict[str, Cell] = {"pairs": count}
    for column in COLUMNS:
        columns[column.title] = _cell(column, np.mean)
        if column is DICE:
            columns["Dice30 %"] = _cell(column, _dice30)
    columns |= {
        "all centers in 25 mm": _aligned,
        "worst organ mm (median)": _worst_organ,
        "s": _cell(SECONDS, np.mean),
        "GiB": _cell(GIBIBYTES, np.max),
        "GPU GiB": _cell(DEVICE_GIBIBYTES, np.max),
    }
    return method_table(results, columns)


def stage_table(results: Results) -> str:
    """Median seconds of every stage, for methods that tell; empty where none does."""
    telling = [result for result in results if result.report.get("stages")]
    # Whoever has most stages knows their order.
    by_length = sorted(telling, key=lambda result: -len(result.report["stages"]))
    stages = list(dict.fromkeys(stage for result in by_length for stage in result.report["stages"]))

    def of_stage(stage: str) -> Cell:
        return lambda rows: number((row.report["stages"].get(stage, math.nan) for row in rows), np.median, 1)

    return method_table(telling, {stage: of_stage(stage) for stage in stages}) if telling else ""


def groups_of(results: Results) -> list[str]:
    """The label groups, in the order in which they come."""
    return list(dict.fromkeys(group for result in results for group in result.groups))


def group_table(results: Results, groups: Sequence[str]) -> str:
    """Mean Dice of every label group."""

    def of_group(group: str) -> Cell:
        return lambda rows: number((100 * row.mean("dice", group) for row in rows), np.mean, 1)

    return method_table(results, {group: of_group(group) for group in groups})


def comparison_table(results: Results, seed: int) -> str:
    """`default` against all others on what the family is ranked by; empty where it was not run."""
    comparisons = [
        (column, one) for column in ACCURACY for one in compare(results, REFERENCE, column, seed) if one.pairs > 1
    ]
    if not comparisons:
        return ""
    lines = [f"| `{REFERENCE}` minus | measure | pairs | difference (95 %) | better on | p | p (Holm) |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    lines += [comparison_row(column, one) for column, one in comparisons]
    return f"Paired differences, Wilcoxon signed-rank test, bootstrap intervals.\n\n{chr(10).join(lines)}\n"


def comparison_row(column: Column, one: Comparison) -> str:
    """One comparison as a line of a Markdown table."""
    mean, low, high = (
        f"{v:+.{column.digits}f}" for v in (one.difference.mean, one.difference.low, one.difference.high)
    )
    cells = [one.method, one.measure, str(one.pairs), f"{mean} ({low} to {high})", f"{one.wins}"]
    return f"| {' | '.join([*cells, p_text(one.p), p_text(one.p_holm)])} |"


def p_text(p: float) -> str:
    """A p-value with two digits that matter."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def failure_list(results: Results) -> str:
    """Every result that is not done, methods with the same trouble together."""
    said: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if not result.done:
            trouble = f"{result.report['status']}: {result.report.get('message', '')}"
            said.setdefault((result.method, trouble), []).append(result.pair)
    return "".join(
        f"- `{method}`, {trouble} ({len(pairs)} pair{'s' if len(pairs) > 1 else ''})\n"
        for (method, trouble), pairs in said.items()
    )


def method_table(results: Results, columns: dict[str, Cell]) -> str:
    """One row per method; columns that say nothing for any method are left out."""
    rows = {name: [result for result in results if result.method == name] for name in methods_of(results)}
    cells = {
        name: {
            title: cell([r for r in of_method if r.done] if cell not in (count, _aligned) else of_method)
            for title, cell in columns.items()
        }
        for name, of_method in rows.items()
    }
    titles = [title for title in columns if any(cells[name][title] for name in rows)]
    lines = [f"| method | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(titles)]
    lines += [f"| {name} | " + " | ".join(cells[name][title] for title in titles) + " |" for name in rows]
    return "\n".join(lines) + "\n"


def count(results: Results) -> str:
    """How many pairs were done, of how many."""
    done = sum(result.done for result in results)
    return str(done) if done == len(results) else f"{done} of {len(results)}"


def _cell(column: Column, summarize: Callable[[Any], Any]) -> Cell:
    return lambda rows: number((column.of(row) for row in rows), summarize, column.digits)


def _dice30(values: Sequence[float]) -> float:
    """What is still reached in the worse cases, as in Learn2Reg."""
    return robust_value(values, higher_is_better=True)


def _aligned(results: Results) -> str:
    """Of all pairs with labels: a method that failed aligned nothing."""
    if not any(result.values("center_mm") for result in results):
        return ""
    return str(sum(result.done and result.aligned for result in results))


def _worst_organ(results: Results) -> str:
    labelled = [result.worst_center for result in results if result.values("center_mm")]
    return number(labelled, np.median, 1)


def number(values: Iterable[float], summarize: Callable[[Any], Any], digits: int) -> str:
    """A summary of the values that are known; empty where none is."""
    values = known(list(values))
    return f"{summarize(values):.{digits}f}" if values else ""


def write_between_markers(tables: str, suite: str, path: Path) -> None:
    """Put tables in the place of what stands between the markers of the suite in a Markdown file.

    Raises:
        ValueError: if the file lacks the markers.
    """
    begin, end = f"<!-- {suite}: begin -->", f"<!-- {suite}: end -->"
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{path} has no markers {begin} and {end}")
    before, rest = text.split(begin, 1)
    path.write_text(f"{before}{begin}\n{tables}{end}{rest.split(end, 1)[1]}", encoding="utf-8")
