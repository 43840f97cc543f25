"""The stages of presets on a problem: what they share, and what a start gone astray does to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from phantoms import PhantomPair, phantom_pair
from torch import Tensor

from SAMRegistrationLib.body import body_mask
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.methods.convex_search import convex_search
from SAMRegistrationLib.methods.instance_optimization import instance_optimization
from SAMRegistrationLib.methods.joined_features import with_mind
from SAMRegistrationLib.methods.problem import Problem, at_shape
from SAMRegistrationLib.methods.sam_coarse import consistent_matches
from SAMRegistrationLib.methods.samconvex import samconvex
from SAMRegistrationLib.pipeline import prepare
from SAMRegistrationLib.presets import Stage
from SAMRegistrationLib.stages import stage_labels
from SAMRegistrationLib.transforms import AffineTransform

COARSE = {"mind_weight": 12.0, "lattice": 1, "iterations": 40, "learning_rate": 0.5, "control_spacing": 1}


class CountingExtractor(MindExtractor):
    """MIND that counts how often it is asked."""

    calls = 0

    def extract_tensor(self, volume: Tensor) -> tuple[Tensor, Tensor | None]:
        self.calls += 1
        return super().extract_tensor(volume)


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(4.0)


def problem_of(fixed: Image, moving: Image, extractor: MindExtractor | None = None) -> Problem:
    return prepare(extractor or MindExtractor(spacing=4.0), (fixed, moving), 4.0, torch.device("cpu"))


@pytest.fixture
def problem(pair: PhantomPair) -> Problem:
    """The phantom pair, aligned as well as a translation can."""
    ready = problem_of(pair.fixed, pair.moving)
    points = pair.inside()
    matrix = AffineTransform().matrix.copy()
    matrix[:3, 3] = (pair.truth(points) - points).mean(axis=0)
    ready.initial = AffineTransform(matrix)
    return ready


def error(pair: PhantomPair, problem: Problem) -> float:
    """Mean distance in mm to the truth inside the body."""
    return float(pair.error(problem.transform().transform_points).mean())


def test_features_are_computed_once_for_all_stages(pair: PhantomPair) -> None:
    extractor = CountingExtractor(spacing=4.0)
    ready = problem_of(pair.fixed, pair.moving, extractor)
    ready.displacement = convex_search(ready, block=2, radius=2)
    ready.displacement = instance_optimization(ready, iterations=2, block=2)
    instance_optimization(ready, iterations=2)
    assert extractor.calls == 2


def test_another_initial_map_has_other_moving_features_and_the_same_fixed_ones(pair: PhantomPair) -> None:
    extractor = CountingExtractor(spacing=4.0)
    ready = problem_of(pair.fixed, pair.moving, extractor)
    fixed, moving = ready.features()
    matrix = AffineTransform().matrix.copy()
    matrix[0, 3] = 12.0
    ready.initial = AffineTransform(matrix)
    fixed_again, moved = ready.features()
    assert fixed_again is fixed and extractor.calls == 3
    assert not torch.equal(moved.fine.data, moving.fine.data)


def test_the_two_way_search_comes_closer_to_the_truth(pair: PhantomPair, problem: Problem) -> None:
    matrix = problem.initial.matrix.copy()
    matrix[:3, 3] += (30.0, 0.0, -24.0)
    problem.initial = AffineTransform(matrix)
    before = error(pair, problem)
    problem.displacement = convex_search(problem, block=2, radius=3)
    assert error(pair, problem) < 0.3 * before


def test_the_search_leaves_out_what_the_mask_leaves_out(problem: Problem) -> None:
    problem.initial = problem.initial.compose(AffineTransform.translation((30.0, 0.0, -24.0)))
    everything = convex_search(problem, block=2, radius=3)
    problem.fixed_mask = torch.zeros(problem.grid.shape, dtype=torch.bool)
    assert convex_search(problem, block=2, radius=3).abs().max() < 1e-6 < everything.abs().max()


def test_what_the_moving_volume_does_not_show_is_not_pulled_to_its_end(
    pair: PhantomPair, problem: Problem
) -> None:
    whole = pair.moving.grid
    kept = whole.size[2] // 2
    grid = whole.cropped((0, 0, 0), (*whole.size[:2], kept))
    half = problem_of(pair.fixed, replace(pair.moving, data=pair.moving.data[:kept].contiguous(), grid=grid))
    half.initial = problem.initial
    beyond = ~grid.contains(pair.truth(pair.inside()))
    before = pair.error(half.transform().transform_points)
    half.displacement = convex_search(half, block=2, radius=3)
    after = pair.error(half.transform().transform_points)
    assert after[~beyond].mean() < before[~beyond].mean()
    assert after[beyond].mean() < 1.2 * before[beyond].mean()


def test_a_descent_on_blocks_has_their_resolution_and_comes_closer(pair: PhantomPair, problem: Problem) -> None:
    before = error(pair, problem)
    problem.displacement = instance_optimization(problem, block=2, **COARSE)
    assert list(problem.displacement.shape[2:]) == [n // 4 for n in problem.grid.shape]
    assert error(pair, problem) < 0.8 * before


def test_a_search_that_went_astray_does_no_harm_to_a_descent_from_rest_too(
    pair: PhantomPair, problem: Problem
) -> None:
    shape = tuple(n // 4 for n in problem.grid.shape)
    astray = 4.0 * torch.randn((1, 3, *shape), generator=torch.Generator().manual_seed(1))
    problem.displacement = astray
    trusting = instance_optimization(problem, block=2, **COARSE)
    wary = instance_optimization(problem, block=2, from_rest=True, **COARSE)
    assert [entry["start"] for entry in problem.details["instance_optimization"]] == ["found", "rest"]
    problem.displacement = trusting
    far = error(pair, problem)
    problem.displacement = wary
    assert error(pair, problem) < 0.5 * far


def test_a_good_start_is_kept_beside_the_one_from_rest(problem: Problem) -> None:
    problem.displacement = instance_optimization(problem, block=1, mind_weight=12.0, iterations=60)
    instance_optimization(problem, block=2, from_rest=True, **{**COARSE, "iterations": 4})
    assert problem.details["instance_optimization"][-1]["start"] == "found"


def test_an_unknown_setting_of_the_descent_is_refused(problem: Problem) -> None:
    with pytest.raises(InputError, match="no such setting"):
        instance_optimization(problem, speed=3)


def test_stages_of_one_name_are_told_apart_in_reports() -> None:
    stages = [Stage("align", {}), Stage("descend", {}), Stage("descend", {}), Stage("descend", {})]
    assert stage_labels(stages) == ["align", "descend", "descend 2", "descend 3"]


def other_features() -> MindExtractor:
    """Features that are not called MIND, so that MIND can be joined with them."""
    extractor = MindExtractor(spacing=4.0, radius=2)
    extractor.name = "other"
    return extractor


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_joined_vectors_multiply_like_the_weighted_mean_of_their_parts(pair: PhantomPair, share: float) -> None:
    ready = problem_of(pair.fixed, pair.moving, other_features())
    volumes = ready.volumes()
    own, mind = ([e.extract_tensor(v)[0] for v in volumes] for e in (ready.extractor, MindExtractor()))
    joined = [with_mind(ready, o, v, share) for o, v in zip(own, volumes, strict=True)]
    parts = [(first * second).sum(dim=1) for first, second in (mind, own)]
    expected = share * parts[0] + (1 - share) * parts[1]
    torch.testing.assert_close((joined[0] * joined[1]).sum(dim=1), expected)


def test_features_that_are_mind_already_are_not_joined_with_it(problem: Problem) -> None:
    own = problem.features()[0].fine.data
    assert with_mind(problem, own, problem.fixed.tensor(), 0.6) is own


def test_samconvex_searches_with_joined_features(pair: PhantomPair) -> None:
    ready = problem_of(pair.fixed, pair.moving, other_features())
    points = pair.inside()
    matrix = AffineTransform().matrix.copy()
    matrix[:3, 3] = (pair.truth(points) - points).mean(axis=0) + np.array([9.0, 0.0, -7.0])
    ready.initial = AffineTransform(matrix)
    before = error(pair, ready)
    alone, joined = (samconvex(ready, radii=(2, 2), mind_share=share) for share in (0.0, 0.6))
    assert not torch.equal(alone, joined)
    ready.displacement = joined
    assert error(pair, ready) < 0.6 * before


def test_joined_features_of_equal_volumes_match_points_with_themselves(pair: PhantomPair) -> None:
    ready = problem_of(pair.fixed, pair.fixed, other_features())
    matches = consistent_matches(ready, stride=4, most=200, largest_mm=50.0, mind_share=0.6)
    # Within one voxel of the features, which is two of the working grid.
    assert float(matches.displacement.norm(dim=1).median()) < 2.0


def test_near_the_bodies_is_where_either_of_them_lies_under_the_initial_map(pair: PhantomPair) -> None:
    ready = problem_of(pair.fixed, pair.moving)
    shape = tuple(n // 2 for n in ready.grid.shape)
    body = at_shape(body_mask(ready.fixed)[None, None].float(), shape)
    near = ready.near_bodies()
    assert tuple(near.shape[2:]) == shape
    assert bool((near[body == 1] == 1).all()) and float(near.mean()) < 1
    matrix = AffineTransform().matrix.copy()
    matrix[0, 3] = -40.0
    ready.initial = AffineTransform(matrix)
    assert not torch.equal(ready.near_bodies(), near)
    assert bool((ready.near_bodies()[body == 1] == 1).all())


def test_a_descent_looks_everywhere_unless_it_is_told_to_stay_near_the_bodies(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tuple(n // 2 for n in problem.grid.shape)
    monkeypatch.setattr(Problem, "near_bodies", lambda _: torch.zeros(1, 1, *half))
    everywhere = instance_optimization(problem, block=2, iterations=10)
    nowhere = instance_optimization(problem, block=2, iterations=10, near_bodies=True)
    assert float(everywhere.abs().max()) > 0.1 and float(nowhere.abs().max()) < 1e-3
