"""What the configurations of all training runs have in common, and how they are read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the training loop reads of a run's configuration.

    Args:
        architecture: network name; a checkpoint of another one is refused.
        network: arguments that the network is built with, beside its defaults.
        iterations: length of the run; the learning rate is constant after `warmup` and falls to zero over the
            last `decay` of it, so that a run can be prolonged from a checkpoint before the decay.
        minutes: if not zero, `iterations` follows from the pace, so that training ends after about this time.
        accumulation: iterations whose gradients are summed before one step.
        checkpoint_minutes: time between checkpoints.
    """

    architecture: str
    network: dict[str, Any] = field(default_factory=dict)
    iterations: int
    minutes: float = 0.0
    accumulation: int = 1
    learning_rate: float
    weight_decay: float
    warmup: int
    decay: float
    average_decay: float
    gradient_clip: float = 1.0
    seed: int = 1
    mixed_precision: bool = True
    checkpoint_minutes: float = 5.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def from_plain(kind: type, values: dict[str, Any], parts: dict[str, type] | None = None) -> Any:
    """A configuration from plain values, whose lists become tuples (but not inside a network's arguments).

    Args:
        kind: its class.
        values: by setting.
        parts: classes of the settings that are configurations themselves.

    Raises:
        TypeError: if a setting is unknown.
    """
    nested = {key: from_plain(part, values.get(key, {})) for key, part in (parts or {}).items()}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**{**plain, **nested})


def read_settings(path: Path | None, **given: Any) -> dict[str, Any]:
    """The settings in a JSON file, if there is one, replaced by those that are given and not None.

    Raises:
        InputError: if the file cannot be read.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"The configuration {path} cannot be read: {error}.") from error
    for name, value in given.items():
        if value is not None:
            values[name] = value
    return values
