"""Plots of a family of pairs as SVG text, which needs no file beside the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from .measures import REFERENCE, SECONDS, Column, values_of
from .results import Results, methods_of
from .statistics import bootstrap_mean

WIDTH = 9.5


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """An empty figure and its axes, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(1, columns)


def colors_of(methods: Sequence[str]) -> dict[str, Any]:
    """A color per method, black for the reference; variants of one method (`@START`) share it."""
    from matplotlib import colormaps

    bases = [base for base in dict.fromkeys(m.partition("@")[0] for m in methods) if base != REFERENCE]
    # Strong colors first, then their light partners.
    palette = [colormaps["tab20"](number) for number in (*range(0, 20, 2), *range(1, 20, 2))]
    colors = {base: palette[number % len(palette)] for number, base in enumerate(bases)}
    return {method: colors.get(method.partition("@")[0], "black") for method in methods}


def dice_per_group(results: Results, groups: Sequence[str]) -> str:
    """Mean Dice per label group, a row of dots per method and a line over the pairs' range."""
    methods = [m for m in methods_of(results) if any(r.done and r.method == m for r in results)]
    drawn, axes = figure(WIDTH, 1.2 + 0.16 * len(groups) * (1 + len(methods)))
    colors = colors_of(methods)
    step = 0.8 / max(1, len(methods))
    for number, method in enumerate(methods):
        of_method = [result for result in results if result.method == method and result.done]
        for row, group in enumerate(groups):
            values = np.asarray([100 * r.mean("dice", group) for r in of_method if r.values("dice", group)])
            if not len(values):
                continue
            height = row - 0.4 + step * (number + 0.5)
            marker = "D" if "@" in method else "o"
            label = method if row == 0 or method not in axes.get_legend_handles_labels()[1] else None
            axes.plot([values.min(), values.max()], [height] * 2, color=colors[method], lw=1)
            axes.plot(values.mean(), height, marker, color=colors[method], ms=4, label=label)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("Dice % (dot: mean over pairs; line: lowest to highest pair; diamond: from the given affine)")
    axes.grid(axis="x", color="0.9")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return svg(drawn)


def accuracy_over_time(results: Results, column: Column, seed: int) -> str:
    """Mean accuracy with its interval against the median time of a registration."""
    drawn, axes = figure(WIDTH, 4.6)
    methods = methods_of(results)
    colors = colors_of(methods)
    for method in methods:
        values, seconds = (list(values_of(results, method, c).values()) for c in (column, SECONDS))
        if not values or not seconds:
            continue
        mean = bootstrap_mean(values, seed)
        if method == "initial":
            axes.axhline(mean.mean, color="0.6", ls="--", lw=1, label="before registration")
            axes.legend(fontsize=7, frameon=False)
            continue
        x = max(float(np.median(seconds)), 0.01)
        axes.errorbar(
            x,
            mean.mean,
            yerr=[[max(0.0, mean.mean - mean.low)], [max(0.0, mean.high - mean.mean)]],
            fmt="D" if "@" in method else "o",
            color=colors[method],
            ms=5,
            lw=1,
        )
        axes.annotate(method, (x, mean.mean), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    # Room for the names at the right.
    axes.margins(x=0.14, y=0.08)
    axes.set_xlabel("median seconds per pair, the given start included")
    axes.set_ylabel(f"{column.title}, mean over pairs with its 95 % interval")
    if not column.higher_is_better:
        axes.invert_yaxis()
    axes.set_title("better is up and to the left", fontsize=9, loc="left")
    axes.grid(color="0.9")
    return svg(drawn)


def distribution(results: Results, column: Column) -> str:
    """Every pair's value per method, the mean as a bar."""
    methods = [method for method in methods_of(results) if values_of(results, method, column)]
    drawn, axes = figure(WIDTH, 0.9 + 0.24 * len(methods))
    colors = colors_of(methods)
    for row, method in enumerate(methods):
        values = list(values_of(results, method, column).values())
        axes.plot(values, [row] * len(values), "|" if len(values) > 5 else "o", color=colors[method], ms=7)
        axes.plot([np.mean(values)] * 2, [row - 0.35, row + 0.35], color="black", lw=1.4)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel(f"{column.title} of every pair; black: mean")
    axes.grid(axis="x", color="0.9")
    return svg(drawn)


def svg(drawn: Any) -> str:
    """A figure as SVG to stand in a page, the same text for the same figure."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "samreg", "font.family": "sans-serif"}):
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # The page is HTML, which knows no XML declaration.
    return text.getvalue()[text.getvalue().index("<svg") :]
