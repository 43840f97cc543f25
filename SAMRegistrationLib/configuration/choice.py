"""From an aligned pair to the stages that finish its registration, with the reasons in plain sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..alignment.feature_alignment import body_grid
from ..alignment.refinement import Model
from ..alignment.robust_fit import fit_transform
from ..body import Regions
from ..features.base import FeatureExtractor
from ..features.memory import GIGABYTE, available_memory
from ..memory_estimate import working_memory
from ..methods.problem import Problem
from ..presets import Preset, Stage, load_preset
from ..transforms import AffineTransform, Transform
from .decision import decide, read_rules
from .situation import Situation, situation_of


@dataclass(frozen=True)
class Choice:
    """How to go on after the alignment.

    Args:
        preset: name of the preset that was chosen.
        stages: what is left of it to do.
        start: what its alignment begins with, where it has another one than was made already.
        reasons: one sentence for each decision: preset, features, levels, search range.
        rule: name of the rule that decided.
        situation: what was known.
    """

    preset: str
    stages: tuple[Stage, ...]
    start: Transform | None
    reasons: tuple[str, ...]
    rule: str
    situation: Situation

    def described(self) -> dict[str, Any]:
        """For the report."""
        return {
            "preset": self.preset,
            "rule": self.rule,
            "reasons": list(self.reasons),
            "situation": asdict(self.situation),
        }


def lacking_memory(
    preset: Preset, extractor: FeatureExtractor, voxels: int, device: torch.device | str
) -> str | None:
    """How much memory features lack in a preset on volumes of so many voxels; None where they fit."""
    free = available_memory(device)
    needed = working_memory(preset, extractor, voxels)
    if free is None or free >= needed or extractor.name == "mind":
        return None
    return f"{extractor.name} features take {needed / GIGABYTE:.1f} GB, and {free / GIGABYTE:.1f} GB are free"


def choose(problem: Problem, aligned_by: Stage, start: Transform | None, free: int | None) -> Choice:
    """Decide by the rules of ``rules.json`` how to register a pair that is aligned already.

    Args:
        problem: the pair with its initial map.
        aligned_by: the stage that found it.
        start: what the user gave to start from.
        free: bytes of memory that were free before the alignment; None where that is not known.
    """
    usual, rules = read_rules()
    regions = Regions.of(problem.fixed)
    situation = situation_of(problem, regions, load_preset(usual), free, given_start=start is not None)
    rule = decide(situation, rules)
    preset = load_preset(rule.take)
    first, *others = preset.stages
    reasons = (
        f"preset {preset.name}: {rule.reason(situation)}.",
        _features_sentence(situation),
        *_search_sentences(preset, situation),
    )
    if first.settings.get("model") == aligned_by.settings.get("model"):
        return Choice(preset.name, tuple(others), start, reasons, rule.name, situation)
    again = replace(first, settings={**first.settings, "refine": True})
    return Choice(preset.name, (again, *others), _stiffer(problem, regions), reasons, rule.name, situation)


def _stiffer(problem: Problem, regions: Regions) -> AffineTransform:
    """The rigid map that is closest to the alignment inside the fixed body."""
    assert isinstance(problem.initial, AffineTransform)
    points = body_grid(regions.body_image)
    return fit_transform(points, problem.initial.transform_points(points), None, Model.RIGID)


def _features_sentence(situation: Situation) -> str:
    if situation.features != "mind":
        return f"features {situation.features}: both volumes are CT, which they were trained on."
    if situation.contrasts == "CT":
        return "features mind: embeddings are missing or do not fit into memory."
    return f"features mind: the volumes are {situation.contrasts}, and embeddings know only CT."


def _search_sentences(preset: Preset, situation: Situation) -> list[str]:
    """What the preset searches, in view of how far matches lie from where the alignment puts them."""
    deformable = [stage for stage in preset.stages if stage.name != "align"]
    if not deformable:
        return ["levels: none, a linear map only.", "search range: that of the alignment."]
    levels = f"levels: {len(deformable)} deformable stages ({', '.join(stage.name for stage in deformable)})."
    if situation.reach_mm is None:
        return [levels, "search range: the preset's, since too few patches match to expect a smaller one."]
    reach = f"95 % of the matches lie within {situation.reach_mm:.0f} mm of where the alignment puts them"
    return [levels, f"search range: the preset's; {reach}."]
