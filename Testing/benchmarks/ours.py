"""This library's presets, through its public Python interface."""

from __future__ import annotations

from .method import Outcome, Task


class Preset:
    """`SAMRegistrationLib.register` with one preset."""

    default_start: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> None:
        from SAMRegistrationLib import pipeline  # noqa: F401 - only its import time is wanted here

    def run(self, task: Task) -> Outcome:
        from SAMRegistrationLib import register

        result = register(
            task.pair.fixed, task.pair.moving, preset=self.name, device=task.device, initial=task.start
        )
        report = result.report
        return Outcome(
            result.transform,
            seconds={stage["name"]: stage["seconds"] for stage in report["stages"]},
            settings={"preset": report["preset"], **report["settings"]},
            warnings=tuple(report["warnings"]),
        )
