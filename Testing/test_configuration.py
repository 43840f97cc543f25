"""The preset `auto` takes what suits: a table of situations, what it measures, and one alignment for all of it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import PhantomPair, phantom_pair

from SAMRegistrationLib import register
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.configuration import lacking_memory
from SAMRegistrationLib.configuration.choice import choose
from SAMRegistrationLib.configuration.decision import COMPARISONS, decide, read_rules
from SAMRegistrationLib.configuration.residual import Residual, residual_of
from SAMRegistrationLib.configuration.situation import CT, MIXED, NO_CT, Situation, situation_of
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.methods import align as align_module
from SAMRegistrationLib.methods.problem import Problem
from SAMRegistrationLib.presets import load_preset, preset_names
from SAMRegistrationLib.solvers.ops import warp
from SAMRegistrationLib.tables import report_text
from SAMRegistrationLib.transforms import AffineTransform

TWO_PEOPLE = Situation(
    contrasts=CT,
    features="sam-lite",
    device="cpu",
    megavoxels=12.0,
    needed_gb=5.0,
    free_gb=12.0,
    memory_share=0.4,
    section_cm2=400.0,
    overlap=0.8,
    stretch=1.15,
    doubtful=False,
    given_start=False,
    matches=200,
    bent_mm=5.0,
    noise_mm=1.5,
    reach_mm=9.0,
    certainty=3.3,
)
STILL = {"matches": 300, "bent_mm": 0.1, "noise_mm": 0.06, "certainty": 1.6}
UNKNOWN = {"matches": 0, "bent_mm": None, "noise_mm": None, "reach_mm": None, "certainty": 0.0}

SITUATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "two people": ({}, "default"),
    "two people on a GPU": ({"device": "cuda"}, "default"),
    "one patient breathing": ({"matches": 322, "bent_mm": 2.2, "noise_mm": 1.1, "certainty": 2.0}, "default"),
    "CTs of which nothing matches": (UNKNOWN, "default"),
    "memory unknown": ({"free_gb": None, "memory_share": None}, "default"),
    "too little memory": ({"free_gb": 4.0, "memory_share": 1.25}, "message-passing"),
    "a whole body on a CPU": ({"megavoxels": 90.0}, "message-passing"),
    "a whole body on a GPU": ({"megavoxels": 90.0, "device": "cuda"}, "default"),
    "one head, two contrasts": ({"contrasts": NO_CT, **STILL}, "rigid"),
    "one head, one contrast": ({"contrasts": NO_CT, **STILL, "bent_mm": 0.01}, "rigid"),
    "one head in CT": (STILL, "rigid"),
    "one head, few matches": ({"contrasts": NO_CT, **STILL, "matches": 100}, "default"),
    "a bent head": (
        {"contrasts": NO_CT, "matches": 307, "bent_mm": 1.5, "noise_mm": 0.3, "certainty": 5.0},
        "default",
    ),
    "a head that the user aligned": ({"contrasts": NO_CT, **STILL, "given_start": True}, "default"),
    "a limb in CT and MR": (
        {"contrasts": MIXED, "matches": 97, "bent_mm": 2.6, "noise_mm": 1.2, "certainty": 2.2},
        "rigid",
    ),
    "a limb in CT and MR, nothing matches": ({"contrasts": MIXED, **UNKNOWN}, "rigid"),
    "CT and MR that clearly bent": (
        {"contrasts": MIXED, "matches": 250, "bent_mm": 6.0, "noise_mm": 1.2, "certainty": 5.0},
        "default",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_gets_the_preset_that_was_measured_best(name: str) -> None:
    changes, expected = SITUATIONS[name]
    situation = replace(TWO_PEOPLE, **changes)
    rule = decide(situation, read_rules()[1])
    assert rule.take == expected
    assert "{" not in rule.reason(situation)


def test_the_rules_name_only_what_exists_say_what_they_rest_on_and_end_with_the_usual() -> None:
    usual, rules = read_rules()
    known = {entry.name for entry in fields(Situation)}
    for rule in rules:
        assert rule.take in preset_names() and rule.measured
        assert all(field in known and sign in COMPARISONS for field, sign, _ in rule.when)
    assert rules[-1].when == () and rules[-1].take == usual
    assert len({rule.name for rule in rules}) == len(rules)


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(2.0)


def problem_of(fixed: Image, moving: Image, initial: AffineTransform | None = None) -> Problem:
    return Problem(fixed, moving, MindExtractor(), initial=initial or AffineTransform())


def residual(problem: Problem) -> Residual | None:
    return residual_of(problem, Regions.of(problem.fixed))


def moved_only(pair: PhantomPair) -> tuple[Problem, AffineTransform]:
    """The phantom against itself under a rigid motion by its header, and that motion."""
    angle = np.deg2rad(7.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    motion = AffineTransform.about_center(turn, pair.fixed.grid.center, [5.0, -3.0, 4.0])
    grid = type(pair.fixed.grid).from_voxel_to_world(
        pair.fixed.grid.size, motion.matrix @ pair.fixed.grid.voxel_to_world
    )
    noise = 10 * torch.randn(pair.fixed.data.shape, generator=torch.Generator().manual_seed(0))
    moving = Image(pair.fixed.data + noise, grid, "float32", pair.fixed.modality)
    slightly_off = AffineTransform.about_center(1.01 * np.eye(3), pair.fixed.grid.center, [1.0, 1.0, 0.0])
    return problem_of(pair.fixed, moving, motion.compose(slightly_off)), motion


def bent(pair: PhantomPair, voxels: float) -> Problem:
    """The phantom against itself, bowed by up to so many voxels."""
    depth, height, width = pair.fixed.data.shape
    bow = voxels * torch.sin(torch.linspace(0, 2 * torch.pi, depth))[:, None, None].expand(depth, height, width)
    field = torch.stack((bow, -bow, torch.zeros_like(bow)))[None]
    return problem_of(pair.fixed, pair.fixed.with_data(warp(pair.fixed.tensor(), field)[0, 0]))


def test_a_motion_is_told_from_bending(pair: PhantomPair) -> None:
    still, bowed = residual(moved_only(pair)[0]), residual(bent(pair, 2.0))
    assert still is not None and bowed is not None
    assert still.bent_mm < 0.5 and still.matches > 150
    assert 1.0 < bowed.bent_mm < 4.0
    assert bowed.bent_mm > 3 * bowed.noise_mm


def test_where_too_few_patches_match_nothing_is_said(pair: PhantomPair) -> None:
    far = AffineTransform.translation([1000.0, 0.0, 0.0])
    problem = problem_of(pair.fixed, pair.moving, far)
    assert residual(problem) is None
    situation = situation_of(problem, Regions.of(pair.fixed), load_preset("default"), None, given_start=False)
    assert situation.matches == 0 and situation.bent_mm is None and situation.overlap == 0.0


def test_a_rigid_choice_begins_with_the_rigid_part_of_the_alignment(pair: PhantomPair) -> None:
    problem, motion = moved_only(pair)
    found = choose(problem, load_preset("auto").stages[0], None, None)
    assert found.preset == "rigid" and [stage.settings["refine"] for stage in found.stages] == [True]
    assert isinstance(found.start, AffineTransform)
    linear = found.start.matrix[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)
    corners = pair.fixed.grid.to_world([[0, 0, 0], [20, 20, 20]])
    distance = found.start.transform_points(corners) - motion.transform_points(corners)
    assert np.linalg.norm(distance, axis=1).max() < 5.0


def test_auto_aligns_once_and_says_why_it_takes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = phantom_pair(4.0)
    alignments = []
    real = align_module.align
    monkeypatch.setattr(align_module, "align", lambda *a, **k: alignments.append(k["model"]) or real(*a, **k))
    found = register(pair.fixed, pair.moving, preset="auto", model="mind")
    assert alignments == ["affine"]
    choice = found.report["details"]["choice"]
    assert found.report["preset"] == "auto" and choice["preset"] == "default"
    stages = load_preset("default").stages
    assert [(stage["name"], stage["settings"]) for stage in found.report["settings"]["stages"]] == [
        (stage.name, stage.settings) for stage in stages
    ]
    assert {sentence.split()[0] for sentence in choice["reasons"]} == {"preset", "features", "levels:", "search"}
    text = report_text(found.report)
    assert all(sentence in text for sentence in choice["reasons"])


def test_features_that_do_not_fit_are_replaced_before_the_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large:
        name = "sam-lite"

    monkeypatch.setattr("SAMRegistrationLib.configuration.choice.available_memory", lambda _: 10**9)
    sentence = lacking_memory(load_preset("auto"), Large(), 10**7, "cpu")  # type: ignore[arg-type]
    assert sentence is not None and "1.0 GB are free" in sentence
    assert lacking_memory(load_preset("auto"), Large(), 10**5, "cpu") is None  # type: ignore[arg-type]
    assert lacking_memory(load_preset("auto"), MindExtractor(), 10**7, "cpu") is None
