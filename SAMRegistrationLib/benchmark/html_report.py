"""One self-contained HTML page: tables, paired tests, plots and the worst cases as pictures."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from .measures import REFERENCE, Column, main_column, values_of
from .pictures import picture
from .plots import accuracy_over_time, dice_per_group, distribution
from .results import Result, Results, families_of, methods_of
from .suite import Suite
from .tables import comparison_table, failure_list, group_table, groups_of, stage_table, summary

WORST_PAIRS = 2
SHOWN_PER_PAIR = 3
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { border-bottom: 1px solid #d0d7de; padding-bottom: .2rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e6e9ec; white-space: nowrap }
th { background: #f6f8fa } th:first-child, td:first-child { text-align: left }
tr.ours td { background: #eef6ff } figure { margin: 1rem 0 } figcaption { color: #57606a; font-size: 13px }
img, svg { max-width: 100%; height: auto } .note { color: #57606a }
"""


def html_report(suite: Suite, results: Results, seed: int) -> str:
    """The page as text, with everything that it shows inside.

    Args:
        suite: for its name, description and published figures.
        results: everything that was run, failures included.
        seed: of the bootstrap intervals.
    """
    parts = [
        f"<h1>Benchmark: {escape(suite.name)}</h1>",
        f"<p>{escape(suite.description)}</p>",
        f'<p class="note">{escape(_circumstances(results))}</p>',
    ]
    families = families_of(results)
    if len(families) > 1:
        links = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in families)
        parts.append(f"<p>Families: {links}</p>")
    for family in families:
        parts += _family(family, [result for result in results if result.family == family], seed)
    if failures := failure_list(results):
        parts.append(f"<h2>Not done</h2><ul>{_items(failures)}</ul>")
    parts += _references(suite.references)
    body = "\n".join(parts)
    title = escape(f"Benchmark: {suite.name}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _circumstances(results: Results) -> str:
    """Where and how it was measured, as far as all results agree on it."""
    threads = sorted({str(result.report.get("threads")) for result in results})
    devices = sorted({str(result.report.get("device")) for result in results})
    revisions = sorted({str(r.report["revision"]) for r in results if r.report.get("revision")})
    return (
        f"{len({result.pair for result in results})} pairs, {len(methods_of(results))} methods; "
        f"device {', '.join(devices)}, threads per process {', '.join(threads)}, {platform.machine()}; "
        f"code {', '.join(revisions) or 'unknown'}. Means are over the pairs that were done."
    )


def _family(name: str, results: Results, seed: int) -> Iterator[str]:
    ours = {r.method for r in results if "preset" in r.report.get("settings", {})}
    yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
    yield _table(summary(results), ours)
    if groups := groups_of(results):
        yield f"<h3>Dice in % per organ</h3>{_table(group_table(results, groups), ours)}"
        yield _plot(dice_per_group(results, groups), "Dice per organ")
    if paired := comparison_table(results, seed):
        sentence, _, table = paired.partition("\n\n")
        yield f"<h3>Against <code>{REFERENCE}</code></h3><p>{escape(sentence)}</p>{_table(table, ours)}"
    if stages := stage_table(results):
        yield f"<h3>Median seconds per stage</h3>{_table(stages, ours)}"
    column = main_column(results)
    if column is not None:
        yield _plot(accuracy_over_time(results, column, seed), "Accuracy over time")
        yield _plot(distribution(results, column), f"{column.title} of every pair")
        yield from _worst_cases(results, column)


def _worst_cases(results: Results, column: Column) -> Iterator[str]:
    """The pairs on which the reference does worst, as it and the best others answer them."""
    methods = methods_of(results)
    judged = REFERENCE if REFERENCE in methods else methods[-1]
    pictured = {result.pair for result in results if result.done and result.slices}
    values = {p: value for p, value in values_of(results, judged, column).items() if p in pictured}
    worst = sorted(values, key=lambda pair: values[pair], reverse=not column.higher_is_better)[:WORST_PAIRS]
    if worst:
        yield f"<h3>Worst cases of <code>{escape(judged)}</code></h3>"
        yield '<p class="note">Fixed in green, warped in magenta, grey where they agree; lines are labels.</p>'
    for pair in worst:
        of_pair = [result for result in results if result.pair == pair and result.done and result.slices]
        for result in _shown(of_pair, judged, column):
            assert result.slices is not None
            caption = f"{pair}: {result.method}, {column.title} {column.of(result):.{column.digits}f}"
            yield (
                f'<figure><img alt="{escape(caption)}" src="{picture(result.slices)}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )


def _shown(of_pair: Results, judged: str, column: Column) -> Results:
    """The judged method's result, the best other's, and where everybody began."""

    def badness(result: Result) -> float:
        value = column.of(result)
        return float("inf") if value != value else -value if column.higher_is_better else value

    own = [result for result in of_pair if result.method == judged]
    initial = [result for result in of_pair if result.method == "initial"]
    others = sorted((r for r in of_pair if r not in own + initial), key=badness)
    return [*own, *others[: SHOWN_PER_PAIR - 2], *initial]


def _references(references: Sequence[dict[str, Any]]) -> Iterator[str]:
    if references:
        yield "<h2>Published figures</h2>"
        yield '<p class="note">Other data and other hardware: they say what such methods reach, not who wins.</p>'
    for reference in references:
        head = "".join(f"<th>{escape(str(title))}</th>" for title in reference["columns"])
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in reference["rows"]
        )
        source = escape(str(reference["source"]))
        yield f"<h3>{escape(str(reference['title']))}</h3><p class='note'>{source}</p>"
        yield f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _table(markdown: str, ours: set[str]) -> str:
    """A Markdown table as HTML; rows of this library's methods stand out."""
    lines = [line.strip().strip("|").split("|") for line in markdown.strip().splitlines() if line.startswith("|")]
    head, rows = lines[0], lines[2:]
    titles = "".join(f"<th>{escape(cell.strip().replace('`', ''))}</th>" for cell in head)
    body = ""
    for row in rows:
        mark = ' class="ours"' if row[0].strip() in ours else ""
        body += f"<tr{mark}>{''.join(f'<td>{escape(cell.strip())}</td>' for cell in row)}</tr>"
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _plot(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _items(markdown: str) -> str:
    return "".join(f"<li>{escape(line[2:].replace('`', ''))}</li>" for line in markdown.strip().splitlines())
