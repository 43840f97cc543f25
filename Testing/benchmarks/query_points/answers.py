"""What every method answers on a pair, kept whole so that anything can be scored: points, maps, translations."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from SAMRegistrationLib.alignment.feature_alignment import body_grid
from SAMRegistrationLib.benchmark.methods import PEERS, Method
from SAMRegistrationLib.benchmark.processes import run_job
from SAMRegistrationLib.features.base import FeatureExtractor
from SAMRegistrationLib.grid import FloatArray
from SAMRegistrationLib.image_io import write_image
from SAMRegistrationLib.methods.aligned_matching import AlignedPointMatcher
from SAMRegistrationLib.methods.joint_matching import JointPointMatcher
from SAMRegistrationLib.methods.point_matching import EmbeddedVolume, PointMatcher
from SAMRegistrationLib.methods.quiz import MOST_QUERIES, QuizPointMatcher
from SAMRegistrationLib.models.quiz import QuizModel

from .pairs import SEED, Pair

OURS = ("quiz", "sam", "joint")
PEER_MODULES = {
    "greedy-affine": f"{PEERS}.greedy",
    "ants-affine": str(Path(__file__).parents[1] / "ants_affine.py"),
}
PEER_SECONDS = 600.0
LEAST_SHIFT_MM = 40.0
"""Of the points, for a translation to be looked for; the table counts from 50 mm of the body."""


def ours(pair: Pair, extractor: FeatureExtractor, model: QuizModel) -> dict[str, Any]:
    """The truth, and what this library's methods find."""
    began = time.perf_counter()
    with torch.no_grad():
        volumes = [EmbeddedVolume(image, extractor.extract(image)) for image in (pair.fixed, pair.moving)]
    seconds = {"embed": time.perf_counter() - began}
    joint = JointPointMatcher(volumes[0], volumes[1], model, extractor)
    matchers: dict[str, PointMatcher] = {
        "quiz": joint.by_network,
        "sam": AlignedPointMatcher(volumes[0], volumes[1], extractor),
        "joint": joint,
    }
    # The center of a bent tube lies beside it, so a point of its center line is asked too.
    on_tubes = [fixed[len(fixed) // 2][None] for fixed, _ in pair.tubes.values()]
    asked = np.concatenate([pair.points, *on_tubes])
    found = {}
    for name, matcher in matchers.items():
        began = time.perf_counter()
        answers = matcher.match(asked)
        seconds[name] = time.perf_counter() - began
        found[name] = {
            "matched": answers.matched.round(3).tolist(),
            "score": answers.score.round(4).tolist(),
            "support": answers.support.round(4).tolist(),
            "cycle_mm": answers.cycle_mm.round(2).tolist(),
            "reason": list(answers.reason),
            "map": matcher.whole_body.matrix.tolist(),
            "translation": body_translation(matcher).tolist(),
        }
    body = joint.by_network.fixed_answers
    return {
        "degrees": pair.degrees,
        "points": asked.round(3).tolist(),
        "truth": pair.truth.round(3).tolist(),
        "organs": list(pair.organs),
        "tubes": {name: lines[1].round(3).tolist() for name, lines in pair.tubes.items()},
        "found": found,
        "body": {
            "points": body.points.round(2).tolist(),
            "matched": body.matched.round(2).tolist(),
            "sigma_mm": body.sigma_mm.round(2).tolist(),
        },
        "moving_grid": {
            name: getattr(pair.moving.grid, name) for name in ("size", "spacing", "origin", "direction")
        },
        "seconds": seconds,
    }


def body_translation(matcher: PointMatcher) -> FloatArray:
    """The mean displacement of the points of the body that the moving volume shows: QUIZ's own, or the map's."""
    if isinstance(matcher, QuizPointMatcher):
        return np.asarray(matcher.translation.matrix[:3, 3])
    points = body_grid(matcher.fixed.body, most=MOST_QUERIES)
    places = matcher.whole_body.transform_points(points)
    shown = matcher.moving.image.grid.contains(places)
    kept = shown if shown.any() else np.ones(len(points), dtype=bool)
    return np.asarray((places - points)[kept].mean(axis=0))


def intensity_translations(pair: Pair) -> dict[str, Any]:
    """SimpleITK's, from both starts, where the displacement is large."""
    if np.linalg.norm((pair.truth - pair.points).mean(axis=0)) < LEAST_SHIFT_MM:
        return {"translations": {}}
    centers = pair.moving.grid.center - pair.fixed.grid.center
    starts = {"intensities": centers, "intensities from the frames": np.zeros(3)}
    return {"translations": {name: intensity_translation(pair, start).tolist() for name, start in starts.items()}}


def intensity_translation(pair: Pair, begin: FloatArray) -> FloatArray:
    """SimpleITK's translation by mutual information over three resolutions; the start where that fails."""
    first, second = (image.to_sitk("float32") for image in (pair.fixed, pair.moving))
    start = sitk.TranslationTransform(3, begin.tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([6, 3, 1.5])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(8.0, 0.1, 150)
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(first, second)
    except RuntimeError:
        found = start
    return np.asarray(found.TransformPoint((0.0, 0.0, 0.0)))


def peer(pair: Pair, name: str, python: str) -> dict[str, Any]:
    """The affine map of a peer, from the volumes' centers, in a process of its own; None where it failed."""
    method = Method(name, PEER_MODULES[name], {"stages": ["affine"]}, python=python)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        (folder / "job").mkdir()
        for role, image in (("fixed", pair.fixed), ("moving", pair.moving)):
            write_image(image, folder / f"{role}.nii.gz", "int16")
        start = np.eye(4)
        start[:3, 3] = pair.moving.grid.center - pair.fixed.grid.center
        task = {
            "fixed": str(folder / "fixed.nii.gz"),
            "moving": str(folder / "moving.nii.gz"),
            "initial": start.tolist(),
            "start": None,
            "folder": str(folder / "job"),
            "threads": 1,
            "seed": SEED,
        }
        began = time.perf_counter()
        run_job(method, task, PEER_SECONDS, folder / "log")
        seconds = time.perf_counter() - began
        outcome = folder / "job" / "outcome.json"
        if not outcome.is_file():
            return {"map": None, "seconds": seconds}
        matrix = np.eye(4)
        for part in json.loads(outcome.read_text())["parts"]:
            matrix = np.asarray(part["matrix"]) @ matrix
        return {"map": matrix.tolist(), "seconds": seconds}
