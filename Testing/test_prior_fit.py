"""The most probable linear map: right where matches say enough, modest where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from SAMRegistrationLib import AffineTransform
from SAMRegistrationLib.alignment.feature_alignment import FeatureAlignment, with_prior
from SAMRegistrationLib.alignment.prior_fit import fit_with_prior
from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import fit_transform, robust_fit
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.matching import Matches

CENTER, SHIFT = (10.0, 20.0, 30.0), (300.0, -40.0, 120.0)
TURN = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)) * 0.1 + np.eye(3))[0]
TURN = TURN * np.sign(np.linalg.det(TURN))
PERSON = AffineTransform.about_center(TURN @ np.diag([1.08, 0.95, 1.1]), CENTER, SHIFT)
BODY = np.random.default_rng(0).uniform((-150, -100, -250), (150, 100, 250), (400, 3))
SLAB = BODY[np.abs(BODY[:, 2]) < 40]


def _error(found: AffineTransform, truth: AffineTransform, points: np.ndarray = BODY) -> float:
    return float(np.linalg.norm(found.transform_points(points) - truth.transform_points(points), axis=1).mean())


def test_a_whole_body_of_matches_overrules_what_is_usual() -> None:
    fit = fit_with_prior(BODY, PERSON.transform_points(BODY), np.ones(len(BODY)), Model.AFFINE)
    assert _error(fit.transform, PERSON) < 0.6
    assert fit.inliers.all()


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_wrong_matches_do_no_harm(share: float) -> None:
    generator = np.random.default_rng(1)
    wrong = generator.random(len(BODY)) < share
    matched = PERSON.transform_points(BODY) + generator.normal(size=BODY.shape) * 3
    matched[wrong] = generator.uniform(-300, 300, (int(wrong.sum()), 3)) + SHIFT
    fit = fit_with_prior(BODY, matched, np.ones(len(BODY)), Model.AFFINE)
    assert _error(fit.transform, PERSON) < 3.0
    assert fit.inliers[~wrong].mean() > 0.95
    assert fit.inliers[wrong].mean() < 0.2


def test_a_stretch_within_a_slab_is_not_carried_over_the_whole_body() -> None:
    """The deformation between two people is smooth, and in a slab it looks like a stretch along the body."""
    truth = AffineTransform.about_center(TURN, CENTER, SHIFT)
    deformed = SLAB + np.array([0.0, 0.0, 9.0]) * np.sin(SLAB[:, 2:] / 60)
    matched = truth.transform_points(deformed)
    weights = np.ones(len(SLAB))
    drawn = _error(fit_with_prior(SLAB, matched, weights, Model.AFFINE, worth=0.02).transform, truth)
    stretched = _error(fit_transform(SLAB, matched, weights, Model.AFFINE), truth)
    assert drawn < 0.7 * stretched


@pytest.mark.parametrize(("model", "stretches"), [(Model.RIGID, (1.0, 1.0)), (Model.SIMILARITY, (1.0, 1.1))])
def test_only_what_the_model_frees_is_used(model: Model, stretches: tuple[float, float]) -> None:
    fit = fit_with_prior(BODY, PERSON.transform_points(BODY), np.ones(len(BODY)), model)
    found = np.linalg.svd(fit.transform.matrix[:3, :3], compute_uv=False)
    assert found[0] - found[2] < 1e-3
    assert stretches[0] - 1e-3 <= found.mean() <= stretches[1] + 1e-3


def test_matches_that_agree_on_nothing_are_refused() -> None:
    generator = np.random.default_rng(3)
    few = BODY[:10]
    with pytest.raises(InputError, match="too few"):
        fit_with_prior(few, few, np.ones(10), Model.AFFINE)
    scattered = generator.uniform(-3000, 3000, BODY[:40].shape)
    with pytest.raises(InputError, match="agree"):
        fit_with_prior(BODY[:40], scattered, np.ones(40), Model.AFFINE)
    with pytest.raises(ValueError, match="translation"):
        fit_with_prior(BODY, BODY, np.ones(len(BODY)), Model.TRANSLATION)


def _found(points: np.ndarray, matched: np.ndarray) -> FeatureAlignment:
    matches = Matches(points, matched, np.ones(len(points)), np.zeros(len(points)))
    fit = robust_fit(points, matched, np.ones(len(points)), Model.AFFINE, 20.0, seed=0)
    return FeatureAlignment(fit, matches, len(points))


def test_what_people_are_like_counts_where_matches_lie_in_a_part_of_the_body() -> None:
    truth = AffineTransform.about_center(TURN, CENTER, SHIFT)
    slab = np.concatenate([SLAB, SLAB[:, [1, 0, 2]]])
    found = _found(slab, truth.transform_points(slab + np.array([0.0, 0.0, 9.0]) * np.sin(slab[:, 2:] / 60)))
    drawn = with_prior(found, Model.AFFINE)
    assert drawn.matches is found.matches and drawn.reliable
    assert _error(drawn.fit.transform, truth) < 0.8 * _error(found.fit.transform, truth)


def test_without_a_prior_the_map_that_was_found_stays() -> None:
    found = _found(BODY, PERSON.transform_points(BODY))
    few = _found(BODY[:20], PERSON.transform_points(BODY[:20]))
    assert with_prior(found, Model.TRANSLATION) is found
    assert with_prior(few, Model.AFFINE) is few
