"""This library's presets, through its public Python interface, with the features of choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from SAMRegistrationLib.presets import Preset as PresetStages
from SAMRegistrationLib.presets import load_preset

from .method import Outcome, Task

MIND_SHARE = 0.6
"""Of MIND in the searches on joined features, as in the preset `default`."""

MIND_WEIGHT, SAM_WEIGHT = 12.0, 3.0
"""In the descents on joined features, as in the preset `default`."""

LONE_WEIGHT = 12.0
"""In the descents on one kind of features, as in the preset `samconvex-io`."""

FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "sam": {
        "sam_coarse": {"mind_share": 0.0},
        "samconvex": {"mind_share": 0.0},
        "convex_search": {"mind_share": 0.0},
        "instance_optimization": {"mind_weight": 0.0, "feature_weight": LONE_WEIGHT},
    },
    "mind": {
        "instance_optimization": {"mind_weight": LONE_WEIGHT, "feature_weight": 0.0},
    },
    "both": {
        "sam_coarse": {"mind_share": MIND_SHARE},
        "samconvex": {"mind_share": MIND_SHARE},
        "convex_search": {"mind_share": MIND_SHARE},
        "instance_optimization": {"mind_weight": MIND_WEIGHT, "feature_weight": SAM_WEIGHT},
    },
}
"""Settings per stage for SAM alone, MIND alone and both joined."""


class Preset:
    """`SAMRegistrationLib.register` with one preset.

    Args:
        name: of the preset as it is shipped, or `PRESET+sam`, `PRESET+mind`, `PRESET+both`. With MIND alone the
            linear alignment goes by intensities, since MIND matches nothing across a body; with both it goes by
            SAM.
    """

    default_start: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> None:
        from SAMRegistrationLib import pipeline  # noqa: F401 - only its import time is wanted here

    def run(self, task: Task) -> Outcome:
        from SAMRegistrationLib import register

        preset, _, features = self.name.partition("+")
        chosen = load_preset(preset)
        result = register(
            task.pair.fixed,
            task.pair.moving,
            preset=with_features(chosen, features) if features else chosen,
            device=task.device,
            initial=task.start,
        )
        report = result.report
        return Outcome(
            result.transform,
            seconds={stage["name"]: stage["seconds"] for stage in report["stages"]},
            settings={"preset": report["preset"], **report["settings"]},
            warnings=tuple(report["warnings"]),
        )


def with_features(preset: PresetStages, features: str) -> PresetStages:
    """The preset on "sam", "mind" or "both".

    Raises:
        ValueError: for other features.
    """
    if features not in FEATURES:
        raise ValueError(f"no features {features!r}; there are {', '.join(FEATURES)}")
    changes = FEATURES[features]
    stages = tuple(
        replace(stage, settings={**stage.settings, **changes.get(stage.name, {})}) for stage in preset.stages
    )
    extractor = "mind" if features == "mind" else "sam"
    # A fallback to MIND would be reported under the wrong name.
    return replace(preset, features=extractor, fallback=None, stages=stages)
