"""Reports and evaluations as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "-"
LONGEST_LANDMARK_LIST = 24
BEFORE_AFTER = ("before", "after")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right, a line below the header."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """Labels, landmarks, similarity and smoothness of an evaluation, before and after."""
    parts = []
    if "labels" in evaluation:
        parts.append(_labels_text(evaluation["labels"]))
    if evaluation.get("landmarks", {}).get("count"):
        parts.append(_landmarks_text(evaluation["landmarks"]))
    if "similarity" in evaluation:
        parts.append(_similarity_text(evaluation["similarity"]))
    parts.append(_field_text(evaluation["field"]))
    return "\n\n".join(parts)


def report_text(report: Mapping[str, Any]) -> str:
    """A report: what ran where, how long, and what it reached."""
    heading = f"preset {report['preset']} on {report['machine']['device']}"
    reasons = report["details"].get("choice", {}).get("reasons", [])
    first = "\n".join([heading, *reasons])
    parts = [first, _stages_text(report), _similarity_text(report["similarity"]), _field_text(report["field"])]
    parts.extend(f"warning: {warning}" for warning in report["warnings"])
    return "\n\n".join(parts)


def _labels_text(labels: Mapping[str, Any]) -> str:
    header = ("label", "Dice", "after", "HD95 mm", "after", "center mm", "after")
    rows = [_label_row(entry["name"], entry) for entry in labels["per_label"]]
    groups = {state: labels["group_mean"][state] for state in BEFORE_AFTER}
    for group in groups["after"]["dice"]:
        values = {state: {name: groups[state][name][group] for name in groups[state]} for state in BEFORE_AFTER}
        rows.append(_label_row(f"mean {group}", values))
    rows.append(_label_row(f"mean of {len(labels['counted'])}", labels["mean"]))
    notes = {
        "lost (moved out of the fixed volume, no distance)": labels["lost"],
        "only in the fixed label map, not counted": labels["only_fixed"],
        "only in the moving label map, not counted": labels["only_moving"],
    }
    lines = [f"{note}: {', '.join(map(str, found))}" for note, found in notes.items() if found]
    return "\n".join([text_table(header, rows), *lines])


def _label_row(name: str, values: Mapping[str, Mapping[str, float | None]]) -> tuple[str, ...]:
    before, after = values["before"], values["after"]
    digits = {"dice": 3, "hd95_mm": 1, "center_distance_mm": 1}
    cells = [number(side[measure], count) for measure, count in digits.items() for side in (before, after)]
    return (name, *cells)


def _landmarks_text(landmarks: Mapping[str, Any]) -> str:
    before, after = (landmarks["mean"][state] for state in BEFORE_AFTER)
    rows = [
        (name, number(before[f"{name}_mm"], 2), number(after[f"{name}_mm"], 2))
        for name in ("mean", "median", "p95", "max")
    ]
    if landmarks["count"] <= LONGEST_LANDMARK_LIST:
        single = landmarks["per_landmark"]
        rows = [(p["name"], number(p["before_mm"], 2), number(p["after_mm"], 2)) for p in single] + rows
    return text_table((f"{landmarks['count']} landmarks, error mm", *BEFORE_AFTER), rows)


def _similarity_text(similarity: Mapping[str, Mapping[str, float | None]]) -> str:
    titles = {
        "normalized_cross_correlation": "normalized cross-correlation",
        "mutual_information": "mutual information",
        "overlap": "overlap of the fields of view",
    }
    rows = [(title, *(number(similarity[s][name], 3) for s in BEFORE_AFTER)) for name, title in titles.items()]
    return text_table(("similarity", *BEFORE_AFTER), rows)


def _field_text(field: Mapping[str, float | None]) -> str:
    rows = [
        ("SDlogJ as in Learn2Reg (+3)", number(field["sdlogj_learn2reg"], 3)),
        ("SDlogJ", number(field["sdlogj"], 3)),
        ("folded voxels %", number(field["folded_percent"], 4)),
        ("non-diffeomorphic volume %", number(field["ndv_percent"], 4)),
        ("smallest Jacobian determinant", number(field["smallest_determinant"], 3)),
        ("largest Jacobian determinant", number(field["largest_determinant"], 3)),
    ]
    return text_table(("displacement field", "value"), rows)


def _stages_text(report: Mapping[str, Any]) -> str:
    rows = [(s["name"], number(s["seconds"], 2), number(s["device_peak_memory_mib"], 0)) for s in report["stages"]]
    rows.append(("all", number(report["seconds"], 2), number(report["device_peak_memory_mib"], 0)))
    table = text_table(("stage", "seconds", "GPU MiB"), rows)
    return f"{table}\npeak memory {number(report['peak_memory_mib'], 0)} MiB"


def number(value: float | None, digits: int) -> str:
    """A number with a fixed count of digits after the point, or a dash for one that does not exist."""
    return MISSING if value is None else f"{value:.{digits}f}"
