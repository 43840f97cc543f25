"""One self-contained HTML page: tables, paired tests, plots and the worst cases as pictures."""

from __future__ import annotations

from .results import Results
from .suite import Suite


def html_report(suite: Suite, results: Results, seed: int) -> str:
    """The page as text."""
    return f"<html>{suite.name} {len(results)} {seed}</html>"
