"""Every preset registers the phantom, and a file of the user's is a preset only if it is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from phantoms import PhantomPair, phantom_pair

from SAMRegistrationLib import register
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.presets import load_preset, preset_names, usable_preset_names
from SAMRegistrationLib.stages import DEFORMABLE

REQUIRED = {"affine", "convexadam", "default", "rigid", "samconvex", "samconvex-io"}
SLOW = {"auto", "convexadam", "samconvex", "samconvex-io"}
LINEAR = {"affine", "rigid"}
LARGEST_MEAN_ERROR_MM = {"rigid": 4.5, "affine": 3.5}
"""A linear map cannot follow the deformation; all others must come within a working voxel on average."""


def for_mind() -> list[str]:
    """The presets that run with MIND features and without weights."""
    return [name for name in preset_names() if not load_preset(name).networks]


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(4.0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in for_mind()]
)
def test_every_preset_improves_the_pair_without_folds(pair: PhantomPair, name: str) -> None:
    found = register(pair.fixed, pair.moving, preset=name, model="mind")
    report = found.report
    before, after = (report["similarity"][when]["normalized_cross_correlation"] for when in ("before", "after"))
    assert after > max(0.9, before)
    assert report["field"]["folded_percent"] <= 0.1
    assert pair.error(found.transform.transform_points).mean() < LARGEST_MEAN_ERROR_MM.get(name, 2.0)
    assert report["preset"] == name


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_complete_and_names_only_what_exists(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset.summary.endswith(".")
    assert {stage.name for stage in preset.stages} <= {"align", *DEFORMABLE}
    assert preset.stages[0].name == "align"
    assert (len(preset.stages) == 1) == (name in LINEAR or preset.automatic)
    assert all(stage.share > 0 for stage in preset.stages)
    assert preset.fallback in ("mind", None) and (preset.features == "mind" or preset.fallback == "mind")


@pytest.mark.parametrize("name", preset_names())
def test_lighter_presets_exist_and_never_lead_back(name: str) -> None:
    seen = [name]
    while (lighter := load_preset(seen[-1]).lighter) is not None:
        assert lighter in preset_names() and lighter not in seen
        seen.append(lighter)


def test_the_presets_of_the_contract_are_there() -> None:
    assert set(preset_names()) >= REQUIRED
    assert set(usable_preset_names()) >= REQUIRED


def content(**changes: Any) -> dict[str, Any]:
    plain = {
        "name": "mine",
        "summary": "Mine.",
        "features": "mind",
        "fallback": None,
        "spacing": 2.0,
        "stages": [{"method": "align", "model": "rigid"}],
    }
    return {**plain, **changes}


def test_a_file_of_the_users_is_a_preset(tmp_path: Path, pair: PhantomPair) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content()))
    found = register(pair.fixed, pair.moving, preset=path)
    assert found.report["preset"] == "mine"
    assert found.report["details"]["align"]["model"] == "rigid"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps(content(stages=[])),
        json.dumps(content(stages=3)),
        json.dumps(content(stages=[3])),
        json.dumps(content(color="red")),
        json.dumps(content(stages=[{"model": "rigid"}])),
        json.dumps(content(stages=[{"method": "magic"}])),
        json.dumps(content(stages=[{"method": "align", "speed": 3}])),
    ],
    ids=["cut", "list", "empty", "count", "entry", "field", "no-method", "magic", "setting"],
)
def test_a_file_that_is_no_preset_is_refused_with_its_reason(tmp_path: Path, pair: PhantomPair, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        register(pair.fixed, pair.moving, preset=path)
    assert "\n" not in str(refusal.value) and "preset" in str(refusal.value)


def test_an_unknown_preset_is_wrong_use_and_the_known_ones_are_named() -> None:
    with pytest.raises(UsageError, match="samconvex-io"):
        load_preset("fancy")
