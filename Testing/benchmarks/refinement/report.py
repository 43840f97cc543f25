"""The tables of RESULTS.md and the picture of the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def region_table(rows: Rows) -> str:
    """ISO against RSO, with the mean and the spread of the ratio."""
    titles = {
        "pair": "---",
        "local mm at scale": "---",
        "unknowns": "---",
        "iterations": "---:",
        "RMSE in the box HU: start": "---:",
        "ISO": "---:",
        "ISO, then RSO": "---:",
        "under the exact map": "---:",
        "ratio": "---:",
        "error in the box mm: after ISO": "---:",
        "after RSO": "---:",
        "outside box and margin mm": "---:",
        "folded voxels": "---:",
        "ISO CPU s": "---:",
        "RSO CPU s": "---:",
    }
    lines = [f"| {' | '.join(row)} |" for row in (titles, titles.values())]
    for row in rows:
        rmse, folded, seconds = row["rmse"], row["folded_voxels"], row["cpu_seconds"]
        lines.append(
            f"| {row['name']} | {row['local']} | {row['unknowns']} | {row['iterations']} | "
            f"{rmse['general']:.0f} | {rmse['iso']:.1f} | "
            f"{rmse['rso']:.1f} | {rmse['truth']:.1f} | {rmse['ratio']:.2f} | {row['error_mm']['iso']:.2f} | "
            f"{row['error_mm']['rso']:.2f} | {row['outside_mm']:.3f} | {folded['before']} to {folded['after']} | "
            f"{seconds['iso']:.0f} | {seconds['rso']:.0f} |"
        )
    return "\n".join([*lines, "", *ratio_lines(rows)]) + "\n"


def ratio_lines(rows: Rows) -> list[str]:
    """Mean, standard deviation and range of the ratios, a line for each kind of experiment."""
    lines = []
    for kind in dict.fromkeys((row["unknowns"], row["local"]) for row in rows):
        ratios = np.array([row["rmse"]["ratio"] for row in rows if (row["unknowns"], row["local"]) == kind])
        spread = f" +- {ratios.std(ddof=1):.2f}" if len(ratios) > 1 else ""
        lines.append(
            f"- {kind[0]}, {kind[1]}: ratio {ratios.mean():.2f}{spread}, from {ratios.min():.2f} "
            f"to {ratios.max():.2f}; at most 0.65 on {int((ratios <= 0.65).sum())} of {len(ratios)} pairs"
        )
    return lines


def landmark_table(rows: Rows) -> str:
    """Errors at the landmarks and at held-out points."""
    lines = [
        "| pair | landmarks | error at them mm: before | after | worst | held out mm: before | after | "
        "new folds | CPU s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        (before, after), (held, held_after) = row["landmarks_mm"], row["held_out_mm"]
        lines.append(
            f"| {row['name']} | {'exact' if row['exact'] else 'soft, 1 mm'} | {before:.2f} | {after:.2f} | "
            f"{row['landmarks_worst_mm']:.2f} | {held:.2f} | {held_after:.2f} | "
            f"{row['new_folds']} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw_curves(rows: Rows, path: Path) -> None:
    """RMSE in the box against iterations, one panel a row."""
    from matplotlib.figure import Figure

    columns = min(len(rows), 5)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.5 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes, row in zip(panels, rows, strict=False):
        for name, label, style in (("iso", "ISO", "r-"), ("rso", "ISO, then RSO from 100", "b--")):
            axes.plot(*zip(*row["curves"][name], strict=True), style, label=label)
        axes.axhline(row["rmse"]["truth"], color="gray", linewidth=0.8, label="under the exact map")
        axes.set_title(f"{row['name']}, {row['unknowns']}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    figure.supxlabel("iteration", fontsize=8)
    figure.supylabel("RMSE in the box, HU", fontsize=8)
    panels[0].legend(fontsize=6)
    figure.savefig(path, dpi=90)
