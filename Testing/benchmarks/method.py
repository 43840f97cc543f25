"""What the benchmark asks of a registration method, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from SAMRegistrationLib.transforms import AffineTransform, Transform

from .pairs import Pair


@dataclass(frozen=True)
class Task:
    """One registration to do.

    Args:
        pair: the volumes, ready to be read.
        start: an alignment of fixed world to moving world to begin with; None leaves the method to itself.
        device: "cpu" or "cuda".
        work_dir: an empty folder for temporary files.
    """

    pair: Pair
    start: AffineTransform | None
    device: str
    work_dir: Path


@dataclass(frozen=True)
class Outcome:
    """What a method found.

    Args:
        transform: the whole map from fixed world to moving world, a start included.
        seconds: time per stage, for methods that can tell.
        settings: what it was run with, for the record.
        warnings: what it had to say about its result.
    """

    transform: Transform
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Method(Protocol):
    """A way to register a pair."""

    name: str
    default_start: str | None
    """The method whose affine result it begins with, unless `NAME@START` asks for another."""

    def load(self) -> None:
        """Import what is needed; not timed. Raises ImportError with a hint where it is not installed."""

    def run(self, task: Task) -> Outcome:
        """Register; timed as a whole, reading the volumes included."""


def affine(matrix: NDArray[Any]) -> AffineTransform:
    """A world matrix as the library's transform."""
    return AffineTransform(np.asarray(matrix, dtype=np.float64))
