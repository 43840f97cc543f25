"""The semantic head: what it gives, whose vectors it may read, how it is fitted, and what searches make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from phantoms import phantom_pair
from torch.nn.functional import normalize

from SAMRegistrationLib.cli import main
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.methods import problem as problems
from SAMRegistrationLib.methods.instance_optimization import instance_optimization
from SAMRegistrationLib.methods.problem import Problem, joined_features
from SAMRegistrationLib.models import structures
from SAMRegistrationLib.models.catalogue import find_model, verify
from SAMRegistrationLib.models.structures import find_structure_head
from SAMRegistrationLib.networks.structure_head import StructureHead
from SAMRegistrationLib.pipeline import prepare
from SAMRegistrationLib.solvers.ops import upsample, warp
from SAMRegistrationLib.training.structures import Places, fit_head


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """A phantom pair whose features have a head of random weights."""
    torch.manual_seed(0)
    head = StructureHead(channels=12, hidden=4, structures=3).eval().requires_grad_(False)
    head.second.weight *= 10
    monkeypatch.setattr(problems, "find_structure_head", lambda _: head)
    pair = phantom_pair(4.0)
    return prepare(MindExtractor(spacing=4.0), (pair.fixed, pair.moving), 4.0, torch.device("cpu"))


def test_the_head_gives_square_roots_of_probabilities() -> None:
    torch.manual_seed(0)
    head = StructureHead(channels=5, hidden=4, structures=3).eval()
    features = normalize(torch.randn(1, 5, 3, 4, 2), dim=1)
    maps = head.unit_vectors(features)
    torch.testing.assert_close(maps[0, :, 2, 1, 0].square(), head(features[:, :, 2, 1, 0])[0].softmax(dim=0))


def test_the_shipped_head_fits_the_shipped_embedding_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_model("sam-lite-structures")
    verify(entry)
    head = find_structure_head("sam-lite")
    assert head is not None and head.second.out_features == len(entry.configuration["structures"])
    assert find_structure_head("mind") is None
    retrained = [model for model in structures.list_models() if model.name != "sam-lite"]
    monkeypatch.setattr(structures, "list_models", lambda: retrained)
    assert find_structure_head("sam-lite") is None


def test_structures_have_their_share_in_a_search(problem: Problem) -> None:
    own = joined_features(problem, 0.0)
    maps = problem.structures()
    assert maps is not None
    joined = joined_features(problem, 0.0, structure_share=0.25)
    expected = 0.25 * (maps[0] * maps[1]).sum(dim=1) + 0.75 * (own[0] * own[1]).sum(dim=1)
    torch.testing.assert_close((joined[0] * joined[1]).sum(dim=1), expected)


def test_a_descent_on_structures_makes_them_agree(problem: Problem) -> None:
    maps = problem.structures()
    assert maps is not None
    found = instance_optimization(
        problem, structure_weight=5.0, feature_weight=0.0, lattice=1, iterations=30, learning_rate=0.3
    )
    moved = normalize(warp(maps[1], upsample(found, maps[0].shape[2:])), dim=1)
    before, after = (1 - float((maps[0] * other).sum(dim=1).mean()) for other in (maps[1], moved))
    assert after < 0.6 * before


def test_features_without_a_head_are_used_alone(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "find_structure_head", lambda _: None)
    assert problem.structures() is None
    assert torch.equal(joined_features(problem, 0.0, structure_share=0.3)[0], joined_features(problem, 0.0)[0])


def test_a_missing_contour_is_no_sign_that_the_structure_is_missing() -> None:
    torch.manual_seed(0)
    centers = normalize(torch.randn(3, 8), dim=1)
    true = torch.arange(3).repeat(300)
    vectors = normalize(centers[true] + 0.1 * torch.randn(900, 8), dim=1)
    # Two thirds of the subjects have no contour of structure 2: its places count as none of the structures there.
    lacking = torch.arange(900) % 9 < 6
    contoured = torch.ones(900, 3, dtype=torch.bool)
    contoured[lacking, 2] = False
    codes = torch.where(lacking & (true == 2), 0, true)
    places = Places(vectors.half(), codes, contoured)
    kept = ~(lacking & (true == 2))
    naive = Places(vectors.half(), codes, torch.ones_like(contoured))
    head, fooled = (
        fit_head(each, hidden=8, iterations=150, batch=256)[0].requires_grad_(False) for each in (places, naive)
    )
    sure, unsure = (each(vectors[true == 2]).softmax(dim=1)[:, 2].mean() for each in (head, fooled))
    assert sure > unsure
    assert float((head(vectors[kept]).argmax(dim=1) == true[kept]).float().mean()) > 0.9


def test_a_scheme_that_the_manifest_does_not_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"items": [], "label_schemes": {"organs": {"1": "liver"}}}))
    options = ["--data", str(manifest), "--out", str(tmp_path / "out"), "--held-out", str(manifest)]
    assert main(["train", "structures", *options, "--scheme", "bones"]) == 3
    assert 'label scheme "bones"' in capsys.readouterr().err
