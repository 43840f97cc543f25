"""The stages that presets are made of, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import InputError
from .methods.align import align_stage
from .methods.convexadam import convexadam
from .methods.instance_optimization import instance_optimization
from .methods.message_passing import message_passing
from .methods.problem import Problem
from .methods.samconvex import samconvex
from .presets import Stage
from .transforms import Transform

DEFORMABLE: dict[str, Callable[..., Tensor]] = {
    "convexadam": convexadam,
    "instance_optimization": instance_optimization,
    "message_passing": message_passing,
    "samconvex": samconvex,
}
"""Methods that find a displacement, in voxels of their own grid over the working grid's box."""


def run_stage(problem: Problem, stage: Stage, start: Transform | None) -> None:
    """Run one stage of a preset on a problem, which then holds what was found.

    Args:
        problem: the pair.
        stage: what to run.
        start: the transform that the user gave to start from, if any.

    Raises:
        InputError: if the preset names a stage or a setting that does not exist.
    """
    if stage.name == "align":
        align_stage(problem, start, **stage.settings)
    elif stage.name in DEFORMABLE:
        problem.displacement = DEFORMABLE[stage.name](problem, **stage.settings)
    else:
        known = ", ".join(["align", *DEFORMABLE])
        raise InputError(f'a preset asks for the unknown stage "{stage.name}"; there are {known}')
