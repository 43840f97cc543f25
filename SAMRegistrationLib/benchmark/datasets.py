"""Where the pairs of a suite come from: each dataset of a suite has a kind, and each kind has a reader here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .pairs import Label, Pair


@dataclass(frozen=True)
class Dataset:
    """One dataset of a suite, and what its reader needs.

    Args:
        name: how the suite calls it.
        options: its entry in the suite, such as `kind`; what else it holds is the reader's own.
        entries: the suite's pairs of this dataset, as they stand in the suite.
        label_tables: the suite's lists of labels, by name.
        root: the folder that the suite's paths are relative to.
    """

    name: str
    options: dict[str, Any]
    entries: Sequence[dict[str, Any]]
    label_tables: dict[str, tuple[Label, ...]]
    root: Path


Reader = Callable[[Dataset], list[Pair]]

KINDS: dict[str, str] = {
    "files": "SAMRegistrationLib.benchmark.file_pairs:read_pairs",
    "synthetic": "SAMRegistrationLib.benchmark.synthetic_pairs:read_pairs",
}
"""`MODULE:FUNCTION` of each kind's reader, loaded when it is needed.

A reader makes one `Pair` of every entry, under the entry's name, and nothing else yet: volumes that must be
computed are made by the pair's `preparation`, in the process that needs them first.
"""


def read_dataset(dataset: Dataset) -> list[Pair]:
    """The pairs of a dataset, in the suite's order.

    Raises:
        InputError: for an unknown kind, or whatever its reader finds wrong.
    """
    kind = dataset.options.get("kind", "files")
    if kind not in KINDS:
        raise InputError(f"dataset {dataset.name!r} is of the unknown kind {kind!r}; there are {', '.join(KINDS)}")
    module, _, function = KINDS[kind].partition(":")
    reader: Reader = getattr(importlib.import_module(module), function)
    return reader(dataset)
