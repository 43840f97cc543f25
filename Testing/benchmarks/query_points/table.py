"""The tables of RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from SAMRegistrationLib.grid import FloatArray

from .answers import OURS
from .pairs import TUBES
from .scores import (
    INTENSITIES,
    Parts,
    found_points,
    level_errors,
    organ_errors,
    point_errors,
    shift,
    translation_offsets,
)

MARKERS = "<!-- query points: begin -->", "<!-- query points: end -->"
LARGE_SHIFT_MM = 50.0
"""From here on a pair counts as one of large displacement."""


def tables(results: dict[str, Parts]) -> str:
    """All of them, as Markdown."""
    done = {name: parts for name, parts in results.items() if "ours" in parts}
    moved = [parts for name, parts in done.items() if name.endswith("_self")]
    people = [parts for name, parts in done.items() if not name.endswith("_self")]
    lines: list[str] = []
    if moved:
        lines += error_table("A volume against a moved view of itself", moved, point_errors)
    if people:
        title = "Between people, organ centers"
        lines += error_table(f"{title}, of the tubes by their center lines", people, _level_values)
        lines += error_table(f"{title}, all of whole contours", people, point_errors)
        lines += organ_table(people)
    if moved:
        lines += translation_table(moved)
    return "\n".join(lines)


def _level_values(parts: Parts, found: FloatArray) -> FloatArray:
    return np.array(list(level_errors(parts, found).values()))


def error_table(title: str, pairs: list[Parts], errors_of: Callable[[Parts, FloatArray], FloatArray]) -> list[str]:
    """Errors over all points of all pairs, a row a method."""
    errors: dict[str, list[FloatArray]] = {}
    for parts in pairs:
        for row, found in found_points(parts).items():
            errors.setdefault(row, []).append(errors_of(parts, found))
    return [
        f"**{title}** ({len(pairs)} pairs), error in mm",
        "",
        "| method | pairs | median | mean | 90 % | worst pair's median |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(_error_row(row, each) for row, each in errors.items()),
        "",
    ]


def _error_row(name: str, errors: list[FloatArray]) -> str:
    every = np.concatenate(errors)
    worst = max(float(np.median(each)) for each in errors)
    numbers = [np.median(every), every.mean(), np.quantile(every, 0.9), worst]
    return f"| {name} | {len(errors)} | " + " | ".join(f"{value:.1f}" for value in numbers) + " |"


def organ_table(pairs: list[Parts]) -> list[str]:
    """Median and mean error of every organ's center, a row an organ; of tubes by either measure."""
    lines = [
        "**Between people, organ by organ**, points by our methods, median / mean error in mm",
        "",
        f"| organ | pairs | {' | '.join(OURS)} |",
        f"| --- | ---: |{' ---: |' * len(OURS)}",
    ]
    organs = list(dict.fromkeys(organ for parts in pairs for organ in parts["ours"]["organs"]))
    for organ in organs:
        lines.append(
            _organ_row(f"{organ}, whole contour" if organ in TUBES else organ, organ, pairs, organ_errors)
        )
        if organ in TUBES:
            lines.append(_organ_row(f"{organ}, center line", organ, pairs, level_errors))
    return [*lines, ""]


def _organ_row(
    title: str, organ: str, pairs: list[Parts], errors_of: Callable[[Parts, FloatArray], dict[str, float]]
) -> str:
    having = [parts for parts in pairs if organ in parts["ours"]["organs"]]
    cells = []
    for name in OURS:
        errors = [errors_of(parts, found_points(parts)[f"{name}, point by point"])[organ] for parts in having]
        cells.append(f"{np.median(errors):.1f} / {np.mean(errors):.1f}")
    return f"| {title} | {len(having)} | " + " | ".join(cells) + " |"


def translation_table(pairs: list[Parts]) -> list[str]:
    """How far translations end from the best one, and on how many pairs ours end closer than intensities."""
    large = [
        parts
        for parts in pairs
        if parts.get("intensities", {}).get("translations") and np.linalg.norm(shift(parts)) >= LARGE_SHIFT_MM
    ]
    if not large:
        return []
    offsets = [translation_offsets(parts) for parts in large]
    lines = [
        f"**Translation alone** ({len(large)} self pairs shifted by {LARGE_SHIFT_MM:g} mm or more), distance in "
        "mm from the mean displacement of the body",
        "",
        "| translation | median | mean | largest | closer than intensities | than these from the frames |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (*OURS, *INTENSITIES):
        own = np.array([each[name] for each in offsets])
        cells = [f"{value:.1f}" for value in (np.median(own), own.mean(), own.max())]
        for other in INTENSITIES:
            closer = sum(each[name] < each[other] for each in offsets)
            cells.append(f"{closer} of {len(large)}" if name in OURS else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def replace_between(file: Path, text: str) -> None:
    """Put the text between the markers of a file."""
    before, rest = file.read_text().split(MARKERS[0])
    file.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")
