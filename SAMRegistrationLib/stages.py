"""The stages that presets are made of, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from torch import Tensor

from .errors import InputError
from .methods.align import align_stage
from .methods.convex_search import convex_search
from .methods.convexadam import convexadam
from .methods.instance_optimization import instance_optimization
from .methods.learned import learned
from .methods.message_passing import message_passing
from .methods.problem import Problem
from .methods.sam_coarse import sam_coarse
from .methods.samconvex import samconvex
from .models.deformable import find_deformable
from .presets import Stage
from .transforms import Transform

DEFORMABLE: dict[str, Callable[..., Tensor]] = {
    "convex_search": convex_search,
    "convexadam": convexadam,
    "instance_optimization": instance_optimization,
    "learned": learned,
    "message_passing": message_passing,
    "sam_coarse": sam_coarse,
    "samconvex": samconvex,
}
"""Methods that find a displacement, in voxels of their own grid over the working grid's box."""


def check_stages(stages: Iterable[Stage]) -> None:
    """Refuse, before any work, stages and settings that do not exist.

    Raises:
        InputError: if the preset names a stage or a setting that there is not.
    """
    for stage in stages:
        if stage.name != "align" and stage.name not in DEFORMABLE:
            known = ", ".join(["align", *DEFORMABLE])
            raise InputError(f'a preset asks for the unknown stage "{stage.name}"; there are {known}')
        parameters = inspect.signature(DEFORMABLE.get(stage.name, align_stage)).parameters
        names = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
        unknown = sorted(set(stage.settings) - names)
        takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if unknown and not takes_more:
            raise InputError(
                f'a preset gives the stage "{stage.name}" the unknown setting "{unknown[0]}"; '
                f"there are {', '.join(sorted(names))}"
            )


def require_models(stages: Iterable[Stage]) -> None:
    """Refuse, before any work, stages whose network there are no weights for.

    Raises:
        UsageError: saying how to come by them.
        InputError: if a preset does not say which network.
    """
    for stage in stages:
        if stage.name != "learned":
            continue
        if "network" not in stage.settings:
            raise InputError('a preset gives the stage "learned" no network')
        find_deformable(stage.settings["network"], stage.settings.get("model"))


def stage_labels(stages: Iterable[Stage]) -> list[str]:
    """What to call the stages of a preset in reports: their names, numbered from the second of a name on."""
    labels: list[str] = []
    seen: dict[str, int] = {}
    for stage in stages:
        seen[stage.name] = seen.get(stage.name, 0) + 1
        labels.append(stage.name if seen[stage.name] == 1 else f"{stage.name} {seen[stage.name]}")
    return labels


def run_stage(problem: Problem, stage: Stage, start: Transform | None) -> None:
    """Run one stage of a preset on a problem, which then holds what was found.

    Args:
        problem: the pair.
        stage: what to run, one that `check_stages` lets pass.
        start: the transform that the user gave to start from, if any.
    """
    if stage.name == "align":
        align_stage(problem, start, **stage.settings)
    else:
        problem.displacement = DEFORMABLE[stage.name](problem, **stage.settings)
