"""Query points: how far from the truth points end that are looked up in another volume, by every method.

    python -m Testing.benchmarks.query_points --data FOLDER --out DIR [--results Testing/benchmarks/RESULTS.md]

Two kinds of pairs, all of volumes that no training saw (`Testing/training_split.json`):

- self: a volume, and the same volume turned by up to 45 degrees about any axis, shifted by up to 200 mm, scaled,
  cropped and with other contrast and noise, all from a seed. The truth is exact.
- inter: two people; the truth is where the center of an organ lies in the other, by manual contours.

What is done already in DIR is not done again. With `--python NAME=PYTHON` the affine registrations of Greedy
("greedy-affine") and ANTs ("ants-affine") run too, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from SAMRegistrationLib.alignment.feature_alignment import body_grid
from SAMRegistrationLib.benchmark.geometry import rigid_about, rotation
from SAMRegistrationLib.benchmark.methods import PEERS, Method
from SAMRegistrationLib.benchmark.processes import run_job
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.features.base import FeatureExtractor
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.grid import FloatArray, Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image, read_labels, write_image
from SAMRegistrationLib.methods.aligned_matching import AlignedPointMatcher
from SAMRegistrationLib.methods.joint_matching import JointPointMatcher
from SAMRegistrationLib.methods.point_matching import EmbeddedVolume, PointMatcher
from SAMRegistrationLib.methods.quiz import QuizPointMatcher, mean_translation
from SAMRegistrationLib.methods.sam_affine import aligned_volume
from SAMRegistrationLib.models.quiz import QuizModel, load_quiz
from SAMRegistrationLib.sampling import Interpolation
from SAMRegistrationLib.synthetic import contrast_phase, crop_field_of_view, noise
from SAMRegistrationLib.transforms import AffineTransform

SEED = 20261122
LARGEST_ANGLE, LARGEST_SHIFT_MM = 45.0, 200.0
SCALES = (0.9, 1.1)
KEPT = (0.6, 1.0)
CONTRAST_HU, NOISE_HU = 80.0, 25.0
BODY_MARGIN_MM = 10.0
MOST_POINTS = 100
LEAST_ORGAN_VOXELS = 20
LARGE_SHIFT_MM = 50.0
"""From here on a pair counts as one of large displacement."""

MARKERS = "<!-- query points: begin -->", "<!-- query points: end -->"
OURS = ("quiz", "sam", "joint")
PEER_NAMES = ("greedy-affine", "ants-affine")
TRANSLATIONS = ("quiz", "intensities", "intensities from the frames")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two volumes and points whose partners are known, (n, 3) each in LPS mm."""

    name: str
    fixed: Image
    moving: Image
    points: FloatArray
    truth: FloatArray
    degrees: float = 0.0


def self_pair(name: str, volume: Image, seed: int) -> Pair:
    """A volume against a moved view of itself."""
    random = np.random.default_rng([SEED, seed])
    axis = random.normal(size=3)
    degrees = float(random.uniform(0, LARGEST_ANGLE))
    direction = random.normal(size=3)
    shift = direction / np.linalg.norm(direction) * random.uniform(0, LARGEST_SHIFT_MM)
    regions = Regions.of(volume)
    turn = rotation(axis / np.linalg.norm(axis), np.radians(degrees)) * random.uniform(*SCALES)
    to_moving = AffineTransform(rigid_about(turn, volume.grid.center, shift))
    moving = _moved(volume, to_moving, regions)
    moving = crop_field_of_view(moving, seed, keep=float(random.uniform(*KEPT)))
    moving = noise(contrast_phase(moving, seed, CONTRAST_HU), seed, NOISE_HU)
    points = body_grid(volume.with_data(_on(regions, volume.grid)), most=8 * MOST_POINTS)
    truth = to_moving.transform_points(points)
    shown = moving.grid.contains(truth)
    chosen = random.permutation(np.flatnonzero(shown))[:MOST_POINTS]
    return Pair(f"{name}_self", volume, moving, points[chosen], truth[chosen], degrees)


def _on(regions: Regions, grid: Grid) -> torch.Tensor:
    return regions.image.with_data(regions.body.float()).resampled(grid, Interpolation.NEAREST, default=0).data


def _moved(volume: Image, to_moving: AffineTransform, regions: Regions) -> Image:
    """The volume under a linear map, resampled on an upright grid around its body."""
    body = np.argwhere(regions.body.numpy())[:, ::-1]
    ends = to_moving.transform_points(regions.image.grid.to_world(body))
    low, high = ends.min(axis=0) - BODY_MARGIN_MM, ends.max(axis=0) + BODY_MARGIN_MM
    spacing = volume.grid.spacing
    size = np.ceil((high - low) / spacing).astype(int)
    grid = Grid(tuple(size), spacing, tuple(low + np.asarray(spacing) / 2))
    return aligned_volume(volume, to_moving.inverse(), grid)


def inter_pair(first: dict[str, Any], second: dict[str, Any], data: Path) -> Pair:
    """Two people with the centers of the organs that both have."""
    images, centers = [], []
    for item in (first, second):
        image = read_image(data / item["file"], "CT")
        labels = read_labels(data / item["labels"][0]["file"], image)
        images.append(image)
        centers.append(_centers(labels))
    common = sorted(set(centers[0]) & set(centers[1]))
    points, truth = (np.array([each[value] for value in common]) for each in centers)
    return Pair(f"{first['name']}_{second['name']}", images[0], images[1], points, truth)


def _centers(labels: Image) -> dict[int, FloatArray]:
    values = labels.data.numpy().astype(int)
    found = {}
    for value in np.unique(values[values > 0]).tolist():
        inside = np.argwhere(values == value)[:, ::-1]
        if len(inside) >= LEAST_ORGAN_VOXELS:
            found[value] = labels.grid.to_world(inside.mean(axis=0))
    return found


def measured(pair: Pair, extractor: FeatureExtractor, model: QuizModel, peers: list[Method]) -> dict[str, Any]:
    """Errors in mm of every point by every method, and of translations."""
    began = time.perf_counter()
    volumes = [EmbeddedVolume(image, extractor.extract(image)) for image in (pair.fixed, pair.moving)]
    features_s = time.perf_counter() - began
    joint = JointPointMatcher(volumes[0], volumes[1], model, extractor)
    matchers: dict[str, PointMatcher] = {
        "quiz": joint.by_network,
        "sam": AlignedPointMatcher(volumes[0], volumes[1], extractor),
        "joint": joint,
    }
    result: dict[str, Any] = {
        "degrees": pair.degrees,
        "points": {},
        "affine": {},
        "seconds": {"embed": features_s},
    }
    for name, matcher in matchers.items():
        began = time.perf_counter()
        found = matcher.match(pair.points)
        result["points"][name] = errors_of(found.matched, pair.truth)
        result["affine"][name] = errors_of(matcher.whole_body.transform_points(pair.points), pair.truth)
        result["seconds"][name] = time.perf_counter() - began
        result.setdefault("said", {})[name] = [
            found.score.tolist(),
            found.support.tolist(),
            found.cycle_mm.tolist(),
            list(found.reason),
        ]
    result |= translations(pair, joint.by_network)
    for method in peers:
        affine = peer_affine(pair, method)
        if affine is not None:
            result["affine"][method.name] = errors_of(affine.transform_points(pair.points), pair.truth)
    return result


def translations(pair: Pair, matcher: QuizPointMatcher) -> dict[str, Any]:
    """How far in mm translations end from the mean displacement of the points, and how large that is."""
    best = (pair.truth - pair.points).mean(axis=0)
    found = {
        "quiz": _translation(matcher.translation),
        "quiz, whole body": _translation(mean_translation(matcher.body_answers)),
        "intensities": intensity_translation(pair, pair.moving.grid.center - pair.fixed.grid.center),
        "intensities from the frames": intensity_translation(pair, np.zeros(3)),
    }
    return {
        "shift": float(np.linalg.norm(best)),
        "offset": {name: float(np.linalg.norm(each - best)) for name, each in found.items()},
    }


def measured_translations(pair: Pair, extractor: FeatureExtractor, model: QuizModel) -> dict[str, Any]:
    """As `measured`, without points: a fraction of the work."""
    volumes = [EmbeddedVolume(image, extractor.extract(image)) for image in (pair.fixed, pair.moving)]
    result = translations(pair, QuizPointMatcher(volumes[0], volumes[1], model))
    return {"degrees": pair.degrees, "points": {}, "affine": {}, **result}


def errors_of(found: FloatArray, truth: FloatArray) -> list[float]:
    """Distances in mm, rounded."""
    return np.linalg.norm(found - truth, axis=1).round(3).tolist()


def _translation(transform: AffineTransform) -> FloatArray:
    return np.asarray(transform.matrix[:3, 3])


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


def peer_affine(pair: Pair, method: Method) -> AffineTransform | None:
    """The affine map of a peer, from the volumes' centers; None where it failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
        run_job(method, task, 600.0, folder / "log")
        outcome = folder / "job" / "outcome.json"
        if not outcome.is_file():
            return None
        matrix = np.eye(4)
        for part in json.loads(outcome.read_text())["parts"]:
            matrix = np.asarray(part["matrix"]) @ matrix
        return AffineTransform(matrix)


def pairs_of(data: Path, split: Path) -> Iterator[tuple[str, Callable[[], Pair]]]:
    """Names of all pairs and how to make them, both kinds in turn."""
    items = {item["name"]: item for item in json.loads((data / "manifest.json").read_text())["items"]}
    held_out = json.loads(split.read_text())
    people = [name for name in held_out["validation"] if name in items]
    trunk = [name for name in held_out["validation_trunk"] if items[name]["modality"] == "CT"]
    for index, name in enumerate([*people, *trunk]):
        file = data / items[name]["file"]
        yield f"{name}_self", lambda n=name, f=file, i=index: self_pair(n, read_image(f, "CT"), i)
        if index < len(people):
            other = people[(index + 1) % len(people)]
            yield f"{name}_{other}", lambda a=name, b=other: inter_pair(items[a], items[b], data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", type=Path, default=Path(__file__).parents[1] / "training_split.json")
    parser.add_argument("--results", type=Path, help="file to put the table into")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON", help="peers to run")
    parser.add_argument("--most", type=int, default=1000, help="pairs of each kind")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="do only every N-th pair")
    parser.add_argument("--translations", action="store_true", help="no points, only how far translations end")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        run(options)
    results = {file.stem: json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))}
    text = table(results)
    print(text)
    if options.results:
        replace_between(options.results, text)


def run(options: argparse.Namespace) -> None:
    """Measure what is not measured yet."""
    extractor, model = get_extractor("sam"), load_quiz()
    peers = []
    for each in options.python:
        name, python = each.split("=", 1)
        module = f"{PEERS}.greedy" if name == "greedy-affine" else str(Path(__file__).with_name("ants_affine.py"))
        peers.append(Method(name, module, {"stages": ["affine"]}, python=python))
    part, parts = map(int, options.part.split("/"))
    counts = {True: 0, False: 0}
    for index, (name, make) in enumerate(pairs_of(options.data, options.split)):
        kind = name.endswith("_self")
        counts[kind] += 1
        file = options.out / f"{name}{'.translations' * options.translations}.json"
        if counts[kind] > options.most or index % parts != part or file.is_file():
            continue
        if options.translations and not kind:
            continue
        with torch.no_grad():
            if options.translations:
                result = measured_translations(make(), extractor, model)
            else:
                result = measured(make(), extractor, model, peers)
        file.write_text(json.dumps(result))
        medians = {m: round(float(np.median(e)), 1) for m, e in result["points"].items()}
        print(
            name, round(result["degrees"]), medians, {m: round(o) for m, o in result["offset"].items()}, flush=True
        )


def table(results: dict[str, dict[str, Any]]) -> str:
    """Both kinds of pairs and the translations, as Markdown."""
    lines = []
    for kind, title in (
        (True, "A volume against a moved view of itself"),
        (False, "Between people, organ centers"),
    ):
        chosen = [
            result for name, result in results.items() if result["points"] and name.endswith("_self") is kind
        ]
        if not chosen:
            continue
        lines += [f"**{title}** ({len(chosen)} pairs), error in mm", ""]
        lines += ["| method | median | mean | 90 % | worst pair's median |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(f"{name}, point by point", [r["points"][name] for r in chosen]) for name in OURS]
        for name in (*OURS, *PEER_NAMES):
            found = [r["affine"][name] for r in chosen if name in r["affine"]]
            lines += [_row(f"{name}, its affine map", found)] if found else []
        lines.append("")
    moved = {
        name.split(".")[0]: result for name, result in results.items() if name.split(".")[0].endswith("_self")
    }
    large = [result for result in moved.values() if result["shift"] >= LARGE_SHIFT_MM]
    if large:
        lines += [
            f"**Translation alone** ({len(large)} self pairs shifted by {LARGE_SHIFT_MM:g} mm or more), distance "
            "in mm from the mean displacement of the points",
            "",
            "| translation | median offset | QUIZ ends closer |",
            "| --- | --- | --- |",
        ]
        quiz = np.array([r["offset"]["quiz"] for r in large])
        for name in TRANSLATIONS:
            offset = np.array([r["offset"][name] for r in large])
            closer = "" if name == "quiz" else f"{int((quiz < offset).sum())} of {len(large)}"
            lines.append(f"| {name} | {np.median(offset):.1f} | {closer} |")
        lines.append("")
    return "\n".join(lines)


def _row(name: str, errors: list[list[float]]) -> str:
    every = np.concatenate([np.asarray(each) for each in errors])
    worst = max(float(np.median(each)) for each in errors)
    numbers = [np.median(every), every.mean(), np.quantile(every, 0.9), worst]
    return f"| {name} | " + " | ".join(f"{value:.1f}" for value in numbers) + " |"


def replace_between(file: Path, text: str) -> None:
    """Put the text between the markers of a file."""
    before, rest = file.read_text().split(MARKERS[0])
    file.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")


if __name__ == "__main__":
    main()
