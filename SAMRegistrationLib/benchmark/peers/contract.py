"""What the benchmark asks of a registration method, and what it gets back.

A method is a module with two functions:

    load() -> None                  import what is needed, not timed; ImportError or NotInstalled where missing
    register(task) -> Outcome       register; timed as a whole, reading the volumes included
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class NotInstalled(Exception):  # noqa: N818 - a state of the machine, not a fault
    """The method is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Task:
    """One registration to do. All matrices are 4x4, from fixed world to moving world, LPS mm.

    Args:
        fixed: file of the fixed volume (NIfTI).
        moving: file of the moving volume.
        initial: the alignment in which the pair is found, where a method's own affine registration begins.
        start: an affine alignment to begin with instead; None leaves the affine part to the method.
        same_contrast: whether grey values mean the same in both volumes.
        device: "cpu" or "cuda".
        threads: how many threads it may use.
        seed: of everything random.
        folder: an empty folder for temporary files.
        settings: what the suite asks for besides.
    """

    fixed: Path
    moving: Path
    initial: Matrix
    start: Matrix | None
    folder: Path
    same_contrast: bool = True
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def begin(self) -> Matrix:
        """The start that was given, or else the alignment in which the pair is found."""
        return self.initial if self.start is None else self.start


@dataclass(frozen=True)
class Outcome:
    """What a method found.

    Args:
        parts: the whole map from fixed to moving world, a start included: 4x4 matrices and files of vector images
            u (LPS mm; x goes to x + u(x)), applied from the first to the last.
        seconds: time per stage, for methods that can tell.
        settings: what it was run with, for the record.
        warnings: what it had to say about its result.
    """

    parts: tuple[Matrix | Path, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Method(Protocol):
    """The two functions of a method's module."""

    def load(self) -> None: ...

    def register(self, task: Task) -> Outcome: ...
