"""A suite: which pairs of which datasets, which methods, which metrics. Shipped ones lie in `suites`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from .datasets import Dataset, read_dataset
from .metrics import METRICS
from .pairs import Label, Pair

FOLDER = Path(__file__).with_name("suites")
KEYS = {
    *("name", "description", "seed", "include", "datasets", "label_tables", "pairs"),
    *("methods", "metrics", "limit_s", "references"),
}


@dataclass(frozen=True)
class Suite:
    """What a suite file says.

    Args:
        name: of the suite; its tables are called after it.
        description: one or more sentences for the report.
        seed: of everything random, in the methods and in the statistics.
        root: the folder that paths of pairs are relative to.
        folder: the suite file's own folder; a dataset's `root` is relative to it.
        datasets: options of each dataset by name; `kind` says who reads it.
        label_tables: lists of labels by name.
        entries: the pairs, as they stand in the file.
        methods: names, or the options of a method under `name`.
        metrics: names of `metrics.METRICS`.
        limit_s: seconds after which a method is stopped, unless it has a limit of its own.
        references: published figures to print beside ours, as they stand in the file.
    """

    name: str
    description: str
    seed: int
    root: Path
    folder: Path
    datasets: dict[str, dict[str, Any]]
    label_tables: dict[str, tuple[Label, ...]]
    entries: tuple[dict[str, Any], ...]
    methods: tuple[str | dict[str, Any], ...]
    metrics: tuple[str, ...] = tuple(METRICS)
    limit_s: float = 1200.0
    references: tuple[dict[str, Any], ...] = field(default=())

    def pairs(self, wanted: Sequence[str] = ()) -> list[Pair]:
        """The pairs in the suite's order.

        Args:
            wanted: only these pairs or families; all where empty.

        Raises:
            InputError: if a dataset cannot be read.
            UsageError: if the suite has no such pair or family.
        """
        names = [entry["name"] for entry in self.entries]
        families = {entry.get("family", entry["dataset"]) for entry in self.entries}
        if unknown := sorted(set(wanted) - set(names) - families):
            raise UsageError(f"the suite {self.name!r} has no pair or family {', '.join(unknown)}")
        chosen = [
            entry
            for entry in self.entries
            if not wanted or entry["name"] in wanted or entry.get("family", entry["dataset"]) in wanted
        ]
        by_name = {pair.name: pair for name in self.datasets for pair in self._read(name, chosen)}
        return [by_name[entry["name"]] for entry in chosen]

    def _read(self, name: str, chosen: Sequence[dict[str, Any]]) -> list[Pair]:
        entries = [entry for entry in chosen if entry["dataset"] == name]
        options = self.datasets[name]
        root = self.folder / options["root"] if "root" in options else self.root
        return read_dataset(Dataset(name, options, entries, self.label_tables, root)) if entries else []


def suite_names() -> list[str]:
    """The suites that come with the library."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load_suite(name_or_path: str | Path, data: Path | None = None) -> Suite:
    """Read a suite by its name or from a file.

    Args:
        name_or_path: a name of `suite_names`, or a file.
        data: the folder that paths of pairs are relative to; by default `SAMREG_DATA`, or else the file's own.

    Raises:
        InputError: if there is no such suite or it says what it must not.
    """
    file = _file_of(name_or_path)
    content = _content(file, ())
    unknown = sorted(content.keys() - KEYS)
    if unknown:
        raise InputError(f"{file} has the unknown entry {unknown[0]!r}; there are {', '.join(sorted(KEYS))}")
    for key in ("name", "pairs", "methods"):
        if not content.get(key):
            raise InputError(f"{file} lacks {key!r}")
    _require_unique_names(content["pairs"], file)
    stray = sorted({entry.get("dataset", "") for entry in content["pairs"]} - content["datasets"].keys())
    if stray:
        raise InputError(f"{file}: pairs of the dataset {stray[0]!r}, which is not among its datasets")
    unknown = sorted(set(content.get("metrics", METRICS)) - METRICS.keys())
    if unknown:
        raise InputError(f"{file}: unknown metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    return Suite(
        name=content["name"],
        description=content.get("description", ""),
        seed=int(content.get("seed", 0)),
        root=_root(file, data),
        folder=file.parent,
        datasets=content["datasets"],
        label_tables={name: _labels(rows) for name, rows in content.get("label_tables", {}).items()},
        entries=tuple(content["pairs"]),
        methods=tuple(content["methods"]),
        metrics=tuple(content.get("metrics", METRICS)),
        limit_s=float(content.get("limit_s", 1200.0)),
        references=tuple(content.get("references", ())),
    )


def _file_of(name_or_path: str | Path) -> Path:
    shipped = FOLDER / f"{name_or_path}.json"
    file = shipped if shipped.is_file() else Path(name_or_path)
    if not file.is_file():
        raise InputError(f"no suite {str(name_or_path)!r}; there are {', '.join(suite_names())}, or give a file")
    return file


def _content(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A suite file with what it includes before its own entries; its own word counts where both speak."""
    if file in above:
        raise InputError(f"{file} includes itself")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no suite: a JSON object is expected")
    merged: dict[str, Any] = {"datasets": {}, "label_tables": {}, "pairs": [], "references": []}
    for name in content.get("include", ()):
        included = _content(file.with_name(name), (*above, file))
        for key in ("datasets", "label_tables"):
            merged[key] |= included.get(key, {})
        for key in ("pairs", "references"):
            merged[key] += included.get(key, [])
        merged.setdefault("methods", included.get("methods", []))
    own = {key: value for key, value in content.items() if key not in merged}
    for key in ("datasets", "label_tables"):
        merged[key] |= content.get(key, {})
    for key in ("pairs", "references"):
        merged[key] = merged[key] + content.get(key, [])
    return merged | own | ({"methods": content["methods"]} if "methods" in content else {})


def _root(file: Path, data: Path | None) -> Path:
    if data is not None:
        return data
    return Path(os.environ["SAMREG_DATA"]) if "SAMREG_DATA" in os.environ else file.parent


def _require_unique_names(entries: Sequence[dict[str, Any]], file: Path) -> None:
    names = [entry.get("name") for entry in entries]
    if None in names:
        raise InputError(f"{file}: a pair without a name")
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{file}: two pairs are called {twice[0]!r}")


def _labels(rows: list[dict[str, Any]]) -> tuple[Label, ...]:
    return tuple(Label(**row) for row in rows)
