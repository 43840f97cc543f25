"""Presets: named chains of stages, kept as data.

A preset is a JSON file in this folder (or a file that the user names): what it is good for, the features it
uses, the working spacing and its stages. Nothing in it is code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..models.folders import installed_architectures

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Stage:
    """One step of a preset: a method, its settings, and its expected share of the time (any unit)."""

    name: str
    settings: dict[str, Any]
    share: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A named chain of stages.

    Args:
        name: what the user asks for.
        summary: one sentence on when to use it.
        features: the features it wants, "mind" or "sam" or the name of a model.
        fallback: the features that it takes where the wanted weights are absent, or None to refuse.
        spacing: working spacing in mm.
        stages: what happens, in this order.
        lighter: the preset to offer where memory does not suffice.
        automatic: whether its stages only align, and what follows is chosen then (see ``configuration``).
    """

    name: str
    summary: str
    features: str
    fallback: str | None
    spacing: float
    stages: tuple[Stage, ...]
    lighter: str | None = None
    automatic: bool = False

    @property
    def networks(self) -> set[str]:
        """The architectures of the networks that predict displacements in its stages."""
        return {str(stage.settings["network"]) for stage in self.stages if "network" in stage.settings}


def preset_names() -> list[str]:
    """The presets that come with the library, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def usable_preset_names() -> list[str]:
    """The presets whose networks there are weights for, or that need none, in alphabetical order."""
    installed = installed_architectures()
    return [name for name in preset_names() if load_preset(name).networks <= installed]


def load_preset(name: str | Path) -> Preset:
    """A preset by its name, or from a JSON file.

    Raises:
        UsageError: if there is no such preset.
        InputError: if the file is not a preset.
    """
    path = Path(name) if str(name).endswith(".json") else _FOLDER / f"{name}.json"
    if not path.is_file():
        raise UsageError(f'unknown preset "{name}"; choose one of {", ".join(preset_names())}')
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a valid preset: {error}") from error


def _parse(content: dict[str, Any]) -> Preset:
    stages = []
    for entry in content.pop("stages"):
        settings = dict(entry)
        stages.append(Stage(settings.pop("method"), settings, settings.pop("share", 1.0)))
    if not stages:
        raise ValueError("it has no stages")
    return Preset(stages=tuple(stages), **content)
