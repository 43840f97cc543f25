"""What the panel says about presets: when to use them and how long they took where they were measured."""

import json
from dataclasses import dataclass
from pathlib import Path

TIMES_FILE = Path(__file__).parent.parent / "Resources" / "PresetTimes.json"


@dataclass(frozen=True)
class PresetText:
    """A preset's name, its sentence and its measured times."""

    name: str
    summary: str
    times: str

    @property
    def text(self) -> str:
        return f"{self.summary} {self.times}"


def presetTexts() -> "list[PresetText]":
    """The library's presets, the default one first, without those whose networks have no weights here."""
    from SAMRegistrationLib.presets import load_preset, usable_preset_names

    names = sorted(usable_preset_names(), key=lambda name: (name != "default", name))
    return [PresetText(name, load_preset(name).summary, timesSentence(name)) for name in names]


def timesSentence(preset: str, file: Path = TIMES_FILE) -> str:
    """How long a preset took, and on what."""
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        measured = {}
    seconds = measured.get("seconds", {}).get(preset)
    if seconds is None:
        return "Its time has not been measured yet."
    return f"Measured: {seconds:.0f} s for {measured['volumes']} on {measured['machine']}."
