"""Tables of what features do to registration, and of alignments from hard starts."""

from __future__ import annotations

import numpy as np

from .tables import Cell, Results, count, method_table, number, percent

STARTS = {
    "starts_turned_45": "turned by 45 degrees",
    "starts_turned_90": "turned by 90 degrees",
    "starts_cut": "less than half in common",
}

VARIANT_NOTES = """\
`+sam`, `+mind` and `+both` are the preset with SAM alone, MIND alone and both joined (shares and weights of
`default`, whose shipped form `+both` is). `affine` is SAM's. MIND alone matches nothing across a body, so with it
the linear alignment goes by intensities and `same-coarse`, which needs such matches, mostly refuses; `@affine`
begins with SAM's alignment instead, so that only the deformable part differs. Means are over the pairs that were
done and have the measure; seconds are the median, reading and the given start included.
"""

START_NOTES = """\
Share of pairs of which every organ's center ends within 25 mm, and the median over pairs of the worst organ's
distance in mm. `affine` matches SAM features, `affine+mind` goes by this library's intensity search, `sitk-affine`
by SimpleITK. The starts are defined in `starts.py`; organs outside a cut volume are judged too.
"""


def feature_markdown(results: Results) -> str:
    """Both tables, each where there are results for it."""
    starts = [result for result in results if result.family in STARTS]
    variants = [result for result in results if result.family not in STARTS]
    sections = []
    if variants:
        sections.append(f"### Presets by features\n\n{VARIANT_NOTES}\n{_variant_table(variants)}")
    if starts:
        sections.append(f"### Alignment from hard starts\n\n{START_NOTES}\n{_start_table(starts)}")
    return "\n".join(["", *sections])


def _variant_table(results: Results) -> str:
    def dice(*families: str) -> Cell:
        return lambda rows: percent(row.mean("dice") for row in rows if not families or row.family in families)

    def landmarks(metric: str) -> Cell:
        return lambda rows: number((row.mean(metric) for row in rows), np.mean, 2)

    columns: dict[str, Cell] = {
        "pairs": count,
        "Dice %, all pairs": dice(),
        "Dice %, OpenKBP": dice("openkbp_inter"),
        "TRE mm, plm": landmarks("tre_mean_mm"),
        "TRE p95 mm, plm": landmarks("tre_p95_mm"),
        "worst folded %": lambda rows: number((row.mean("folded_percent") for row in rows), np.max, 3),
        "s": lambda rows: number((row.seconds for row in rows), np.median, 1),
    }
    return method_table(results, columns)


def _start_table(results: Results) -> str:
    columns: dict[str, Cell] = {"runs": count}
    for family, title in STARTS.items():
        columns[f"{title}: within 25 mm"] = _aligned(family, results)
        columns[f"{title}: worst organ, mm"] = _median_worst(family)
    columns["s"] = lambda rows: number((row.seconds for row in rows), np.median, 1)
    return method_table(results, columns)


def _aligned(family: str, results: Results) -> Cell:
    """Of all runs: one that failed aligned nothing."""

    def cell(rows: Results) -> str:
        if not rows:
            return ""
        runs = [row for row in results if row.family == family and row.method == rows[0].method]
        return percent([float(np.mean([row.done and row.aligned for row in runs]))]) + " %" if runs else ""

    return cell


def _median_worst(family: str) -> Cell:
    return lambda rows: number((row.worst_center for row in rows if row.family == family), np.median, 1)
