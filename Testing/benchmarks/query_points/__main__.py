"""Query points: how far from the truth points end that are looked up in another volume, by every method.

    python -m Testing.benchmarks.query_points --data FOLDER --out DIR [--results Testing/benchmarks/RESULTS.md]

Two kinds of pairs, all of volumes that no training saw (`Testing/training_split.json`):

- self: a volume, and the same volume turned by up to 45 degrees about any axis, shifted by up to 200 mm, scaled,
  cropped and with other contrast and noise, all from a seed. The truth is exact.
- inter: two people; the truth is where the center of an organ lies in the other, by manual contours.

What is done already in DIR is not done again. With `--translations` the translations that intensities find are
measured, too, and with `--python NAME=PYTHON` the affine registrations of Greedy ("greedy-affine") and ANTs
("ants-affine"), each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.models.quiz import load_quiz

from .answers import PEER_MODULES, intensity_translations, ours, peer
from .pairs import Pair, pairs_of
from .table import replace_between, tables

Part = Callable[[Pair], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", type=Path, default=Path(__file__).parents[2] / "training_split.json")
    parser.add_argument("--results", type=Path, help="file to put the tables into")
    parser.add_argument("--translations", action="store_true", help="by intensities, too")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON", help="peers to run")
    parser.add_argument("--pairs", default="", help="only those whose names contain one of these, comma-separated")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        run(options)
    text = tables(read_parts(options.out))
    print(text)
    if options.results:
        replace_between(options.results, text)


def run(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, pair by pair."""
    parts = chosen_parts(options)
    for name, make in pairs_of(options.data, options.split):
        if not any(text in name for text in options.pairs.split(",")):
            continue
        missing = {part: file_of(options.out, name, part) for part in parts if wanted(part, name)}
        missing = {part: file for part, file in missing.items() if not file.is_file()}
        if not missing:
            continue
        pair = make()
        for part, file in missing.items():
            began = time.perf_counter()
            answer = parts[part](pair)
            file.write_text(json.dumps(answer))
            print(name, part, f"{time.perf_counter() - began:.0f} s", flush=True)


def chosen_parts(options: argparse.Namespace) -> dict[str, Part]:
    """What is asked for, each with the function that measures it."""
    extractor, model = get_extractor("sam"), load_quiz()
    parts: dict[str, Part] = {"ours": lambda pair: ours(pair, extractor, model)}
    if options.translations:
        parts["intensities"] = intensity_translations
    for each in options.python:
        name, python = each.split("=", 1)
        if name not in PEER_MODULES:
            raise SystemExit(f"unknown peer {name!r}; there are {', '.join(PEER_MODULES)}")
        parts[name] = lambda pair, n=name, p=python: peer(pair, n, p)
    return parts


def wanted(part: str, pair: str) -> bool:
    """Translations are a matter of moved views."""
    return part != "intensities" or pair.endswith("_self")


def file_of(folder: Path, pair: str, part: str) -> Path:
    """Where a part of a pair's result is kept."""
    return folder / f"{pair}.{part}.json"


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """All results by pair and part."""
    results: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        pair, part = file.stem.split(".", 1)
        results.setdefault(pair, {})[part] = json.loads(file.read_text())
    return results


if __name__ == "__main__":
    main()
