"""What a refinement reached, as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tables import number, report_text, text_table


def refinement_text(report: Mapping[str, Any]) -> str:
    """The report with a table of the steps, and one of the landmarks if there were any."""
    found = report["details"]["refinement"]
    rows = []
    for index, step in enumerate(found["steps"], 1):
        errors = step.get("rmse", {})
        losses = step.get("loss") or [None]
        folded = step["folded_voxels"]
        rows.append(
            (
                f"{index} {step['kind']}",
                number(errors.get("before"), 1),
                number(errors.get("after"), 1),
                number(losses[0], 4),
                number(losses[-1], 4),
                number(step["largest_mm"], 1),
                str(folded["before"]),
                str(folded["after"]),
            )
        )
    header = ("step", "RMSE in the box", "after", "loss", "after", "moved mm at most", "folded voxels", "after")
    parts = [text_table(header, rows)]
    if "landmarks" in found:
        parts.append(_landmarks_text(found["landmarks"]))
    return "\n\n".join([*parts, report_text(report)])


def _landmarks_text(landmarks: Mapping[str, Any]) -> str:
    rows = [
        (
            entry["name"] + (" (contradicts the rest)" if entry["contradicts_the_rest"] else ""),
            number(entry["before_mm"], 2),
            number(entry["after_mm"], 2),
        )
        for entry in landmarks["per_landmark"]
    ]
    before, after = landmarks["tre_before_mm"], landmarks["tre_after_mm"]
    rows.append(("mean", number(before["mean"], 2), number(after["mean"], 2)))
    return text_table(("landmark, error mm", "before", "after"), rows)
