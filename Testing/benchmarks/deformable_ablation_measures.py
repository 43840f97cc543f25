"""What the ablations measure of a field, each measurement kept as soon as it is made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.methods.instance_optimization import instance_optimization
from SAMRegistrationLib.methods.problem import Problem
from SAMRegistrationLib.metrics import field_quality
from SAMRegistrationLib.networks.deformable import DeformableNetwork
from SAMRegistrationLib.solvers.ops import upsample, warp
from SAMRegistrationLib.training.cache import FIRST_LABEL
from SAMRegistrationLib.training.deformable.pairs import Pair

from .deformable_ablation_pairs import SPACING, FramedVolume

FAR_MM = (10.0, 20.0)
"""Displacements are counted apart below, between and above these."""

OPTIMIZATION: dict[str, Any] = {"mind_weight": 12.0, "iterations": 50, "learning_rate": 0.3, "diffusion": 0.5}
"""Of networks that were trained on known fields, which no optimization can go on with."""


class Results:
    """What was measured, by "part/pair/name", written whenever something is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def once(self, key: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Call what measures, unless it is known what came of it."""
        if key in self.values:
            return
        began = time.process_time()
        self.values[key] = {**measure(*arguments), "seconds": round(time.process_time() - began, 1)}
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.values, indent=1))
        temporary.replace(self.path)
        print(key, self.values[key], flush=True)


class PairFields:
    """Fields of one pair, each found and judged by the Dice of its organs once, and kept.

    Args:
        problem: whose displacement is the last field.
        fixed, moving: the pair.
        results: where measures go, beside which the fields lie.
        prefix: of their keys.
    """

    def __init__(
        self, problem: Problem, fixed: FramedVolume, moving: FramedVolume, results: Results, prefix: str
    ) -> None:
        self.problem, self.fixed, self.moving, self.results, self.prefix = problem, fixed, moving, results, prefix
        self.folder = results.path.parent / "fields"
        self.folder.mkdir(exist_ok=True)

    def field(
        self, name: str, find: Callable[..., Tensor | None], *arguments: Any, start: Tensor | None, **settings: Any
    ) -> Tensor | None:
        """What a method finds from a displacement to start from."""
        self.problem.displacement = start
        path = self.folder / (f"{self.prefix}-{name}.pt".replace("/", "-").replace(" ", "_"))
        self.results.once(f"{self.prefix}/{name}", self._judged, path, find, *arguments, settings)
        self.problem.displacement = torch.load(path, weights_only=True)
        return self.problem.displacement

    def _judged(self, path: Path, find: Callable[..., Tensor | None], *arguments: Any) -> dict[str, Any]:
        *plain, settings = arguments
        field = find(self.problem, *plain, **settings)
        torch.save(field, path)
        folded = 0.0 if field is None else field_quality(field).folded_percent
        return {"dice": organ_dice(self.fixed, self.moving, field), "folded": folded}


def organ_dice(fixed: FramedVolume, moving: FramedVolume, field: Tensor | None) -> float:
    """Mean Dice in % of the structures that both have, at half of `SPACING`."""
    codes = moving.codes.float()
    if field is not None:
        codes = warp(codes, upsample(field, tuple(codes.shape[2:])), mode="nearest")
    scores = []
    for code in set(fixed.codes.unique().tolist()) & set(moving.codes.unique().tolist()):
        if code >= FIRST_LABEL:
            first, second = fixed.codes == code, codes == code
            scores.append(200 * float((first & second).sum()) / float(first.sum() + second.sum()))
    return sum(scores) / len(scores)


def known_errors(pair: Pair, network: DeformableNetwork | None, optimized: bool) -> dict[str, Any]:
    """Mean distance in mm from a generated pair's field, in all of the body and by the displacement's length.

    Args:
        pair: that a field is known of.
        network: that predicts it; None for no displacement.
        optimized: whether to tell also what instance optimization makes of the prediction.
    """
    assert pair.known is not None
    field = torch.zeros_like(pair.known)
    if network is not None:
        with torch.no_grad():
            field = network(pair.fixed, pair.moving)[-1].float()
    found = {"": field}
    if optimized:
        found[", io"] = _optimized(pair, field)
    length = pair.known.norm(dim=1, keepdim=True) * SPACING
    parts = {
        "all": length >= 0,
        "near": length < FAR_MM[0],
        "middle": (length >= FAR_MM[0]) & (length < FAR_MM[1]),
        "far": length >= FAR_MM[1],
    }
    errors = {}
    for suffix, values in found.items():
        distance = (values - pair.known).norm(dim=1, keepdim=True) * SPACING
        for part, mask in parts.items():
            chosen = distance[mask & (pair.body > 0.5)]
            errors[part + suffix] = float(chosen.mean()) if len(chosen) else None
    return errors


def _optimized(pair: Pair, field: Tensor) -> Tensor:
    depth, height, width = pair.fixed.shape[2:]
    grid = Grid((width, height, depth), (SPACING,) * 3)
    images = [Image(volume[0, 0], grid) for volume in (pair.fixed, pair.moving)]
    problem = Problem(images[0], images[1], MindExtractor(), displacement=field)
    return upsample(instance_optimization(problem, **OPTIMIZATION), tuple(field.shape[2:]))
