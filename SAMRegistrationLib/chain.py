"""Running a preset's stages one after the other, recorded; of an automatic preset also those that it chooses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from .configuration import choose, usual_preset
from .errors import RegistrationWarning
from .features.memory import available_memory
from .memory_reuse import give_back_much
from .methods.problem import Problem
from .metrics import StageRecorder
from .presets import Preset, Stage, load_preset
from .stages import run_stage, stage_labels
from .transforms import Transform


def plan_of(preset: Preset) -> dict[str, float]:
    """Expected shares of the time by stage; for an automatic preset those of what it usually takes."""
    stages = (*preset.stages, *(load_preset(usual_preset()).stages[1:] if preset.automatic else ()))
    shares = {label: stage.share for label, stage in zip(stage_labels(stages), stages, strict=True)}
    return {"prepare": 1.0, **shares, "finish": 2.0}


def run_chain(
    recorder: StageRecorder, problem: Problem, preset: Preset, start: Transform | None
) -> tuple[Stage, ...]:
    """Run all stages of a preset on a problem, which then holds what was found.

    Args:
        recorder: of times and progress.
        problem: the pair.
        preset: whose stages exist.
        start: the transform that the user gave to start from, if any.

    Returns:
        The stages that were run.
    """
    free = available_memory(problem.device) if preset.automatic else None
    _run(recorder, problem, preset.stages, start, ends=not preset.automatic)
    if not preset.automatic:
        return preset.stages
    with recorder.stage("choose"), torch.no_grad():
        choice = choose(problem, preset.stages[0], start, free)
    problem.details["choice"] = choice.described()
    _run(recorder, problem, choice.stages, choice.start or start, ends=True)
    return (*preset.stages, *choice.stages)


def _run(
    recorder: StageRecorder,
    problem: Problem,
    stages: tuple[Stage, ...],
    start: Transform | None,
    *,
    ends: bool,
) -> None:
    """Run stages; where the registration ends with them, nothing is kept for stages to come."""
    for number, (label, stage) in enumerate(zip(stage_labels(stages), stages, strict=True), start=1):
        problem.in_last_stage = ends and number == len(stages)
        with recorder.stage(label):
            give_back_much()
            problem.progress = lambda fraction, label=label: recorder.advance(label, fraction)  # type: ignore[misc]
            noting(problem.warnings, lambda stage=stage: run_stage(problem, stage, start))  # type: ignore[misc]
    if ends:
        problem.forget()


def noting(notes: list[str], work: Callable[[], Any]) -> Any:
    """Run `work`; the library's warnings go to `notes`, each once, all others to where they would have gone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RegistrationWarning)
        result = work()
    for warning in caught:
        if not issubclass(warning.category, RegistrationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in notes:
            notes.append(str(warning.message))
    return result
