"""Region-specific optimization and landmarks on real CTs under generated deformations: the table of RESULTS.md.

    python -m Testing.benchmarks.refinement --data DATA --out DIR

Every volume is deformed, once smoothly all over and once more at a small scale inside a box of 64 voxels; both
sides get noise and metal with streaks, each its own, the metal beside the box. As in the paper, 500 iterations of
image-specific optimization (ISO) stand against 100 of them and 400 of region-specific optimization (RSO) of the
box, all of the same similarity, on one thread, and timed by the process's CPU clock. Landmarks start from the true
map under a smooth error, at ten places where that is 5 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SAMRegistrationLib import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Image,
    LandmarkPairs,
    RegionOfInterest,
    read_image,
    refine,
)
from SAMRegistrationLib.body import body_mask
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.grid import FloatArray
from SAMRegistrationLib.methods.region_optimization import RegionSettings, Similarity, optimize_displacement
from SAMRegistrationLib.methods.region_volumes import box_on, region_grid, region_pair, whole_grid
from SAMRegistrationLib.refinement.patch import without_new_folds
from SAMRegistrationLib.refinement.report import RegionErrors
from SAMRegistrationLib.refinement.steps import MOST_IMAGE_VOXELS
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant
from SAMRegistrationLib.synthetic import Deformation, ElasticMotion, deform, elastic, noise, streaks
from SAMRegistrationLib.synthetic.streaks import METAL_HU
from SAMRegistrationLib.transforms import Transform

VOLUMES = (
    "thorax/lidc0405.nii.gz",
    "thorax/lidc0314.nii.gz",
    "head_neck/vhm_head.nii.gz",
    "legs/vhf_legs.nii.gz",
)
BOX_VOXELS = 64
MARGIN_MM = 20.0
GLOBAL_MM, GLOBAL_SCALE_MM = 8.0, 40.0
LOCAL_MM, LOCAL_SCALE_MM = 9.0, 8.0
NOISE_HU = 10.0
ISO_LONG, ISO_SHORT, RSO = 500, 100, 400
WATCHED_EVERY = 50
LANDMARKS, LANDMARK_ERROR_MM, HELD_OUT = 10, 5.0, 300
LANDMARK_ITERATIONS = 200


@dataclass(frozen=True)
class Case:
    """A pair with its truth and the box that a person would draw."""

    name: str
    fixed: Image
    moving: Image
    truth: Deformation
    box: RegionOfInterest


def make_case(path: Path, seed: int) -> Case:
    """A volume and its deformed copy, both with noise and streaks of their own."""
    image = read_image(path, "CT")
    body = torch.nonzero(body_mask(image)).double().mean(dim=0).flip(0).numpy()
    half = np.asarray(image.grid.spacing) * (BOX_VOXELS / 2 - 0.01)
    center = image.grid.to_world(np.rint(body) - 0.5)
    box = RegionOfInterest(center, half)
    truth = elastic(image, seed, GLOBAL_MM, GLOBAL_SCALE_MM).then(local_motion(image, box, seed + 1))
    fixed = noise(streaked(image, box, seed + 2), seed + 3, NOISE_HU)
    moving = noise(streaked(deform(image, truth), box, seed + 4), seed + 5, NOISE_HU)
    return Case(path.name.removesuffix(".nii.gz"), fixed, moving, truth, box)


def streaked(image: Image, box: RegionOfInterest, seed: int) -> Image:
    """A volume with metal and streaks; the metal itself lies beside the box, where a person would draw none."""
    inside = box.mask(image.grid)
    for trial in range(seed, seed + 1000, 37):
        found = streaks(image, trial)
        if not bool(((found.data >= METAL_HU) & (image.data < METAL_HU))[inside].any()):
            return found
    raise ValueError(f"the metal of every seed from {seed} on lies in the box")


def local_motion(image: Image, box: RegionOfInterest, seed: int) -> Deformation:
    """An elastic motion of a small scale that is confined to a box."""
    margin = 0.3 * float(box.half_size.min())
    inner = box.grown(-margin)
    (motion,) = elastic(image, seed, LOCAL_MM, LOCAL_SCALE_MM).steps
    assert isinstance(motion, ElasticMotion)
    window = inner.weight(motion.field.grid, margin)
    return Deformation((ElasticMotion(DisplacementField(motion.field.data * window, motion.field.grid)),))


@dataclass
class Run:
    """The optimizations of one case with one similarity, their RMSE in the box as they go, and their CPU time."""

    case: Case
    similarity: Similarity

    def __post_init__(self) -> None:
        self._errors = RegionErrors(self.case.box, self.case.fixed, self.case.moving)

    def whole_image(
        self, start: Transform, iterations: int, most_voxels: int = MOST_IMAGE_VOXELS
    ) -> tuple[Transform, list[tuple[int, float]], float]:
        """Image-specific optimization at a spacing of at most so many voxels."""
        grid = whole_grid(self.case.fixed.grid, most_voxels)
        everywhere = torch.ones(grid.shape)
        return self._optimized(start, grid, everywhere > 0, everywhere, iterations)

    def region(self, start: Transform, iterations: int) -> tuple[Transform, list[tuple[int, float]], float]:
        """Region-specific optimization of the case's box."""
        grid = region_grid(self.case.box, MARGIN_MM, self.case.fixed.grid)
        inside, window = box_on(self.case.box, MARGIN_MM, grid)
        return self._optimized(start, grid, inside, window, iterations)

    def error(self, transform: Transform) -> float:
        """RMSE in HU inside the box."""
        found = self._errors.under(transform)
        assert found is not None
        return found

    def _optimized(
        self, start: Transform, grid: Any, inside: torch.Tensor, window: torch.Tensor, iterations: int
    ) -> tuple[Transform, list[tuple[int, float]], float]:
        case = self.case
        curve: list[tuple[int, float]] = []
        paused = 0.0

        def watch(iteration: int, found: Callable[[], DisplacementField]) -> None:
            nonlocal paused
            if (iteration + 1) % WATCHED_EVERY == 0:
                began = time.process_time()
                curve.append((iteration + 1, self.error(CompositeTransform([found(), start]))))
                paused += time.process_time() - began

        began = time.process_time()
        pair = region_pair(case.fixed, case.moving, start, grid, inside, window)
        result = optimize_displacement(pair, RegionSettings(self.similarity, iterations), watch=watch)
        correction, _ = without_new_folds(result.correction, start, pair.window, case.fixed.grid)
        seconds = time.process_time() - began - paused
        return CompositeTransform([correction, start]), curve, seconds


def region_row(case: Case, similarity: Similarity) -> dict[str, Any]:
    """ISO against RSO on one pair."""
    run = Run(case, similarity)
    start = AffineTransform()
    general = run.error(start)
    iso, iso_curve, iso_seconds = run.whole_image(start, ISO_LONG)
    accepted, first_curve, _ = run.whole_image(start, ISO_SHORT)
    rso, rso_curve, rso_seconds = run.region(accepted, RSO)
    iso_error, rso_error = run.error(iso), run.error(rso)
    fields = {
        name: displacement_on(t, case.fixed.grid)
        for name, t in (("before", accepted), ("after", rso), ("iso", iso))
    }
    truth = case.truth.displacement(case.fixed.grid)
    inside = case.box.mask(case.fixed.grid)
    beyond = ~case.box.grown(MARGIN_MM).mask(case.fixed.grid)
    change = (fields["after"].data - fields["before"].data).norm(dim=1)[0]
    return {
        "name": case.name,
        "similarity": similarity.value,
        "rmse": {
            "general": general,
            "iso": iso_error,
            "rso": rso_error,
            "ratio": rso_error / iso_error,
            "truth": run.error(truth),
        },
        "error_mm": {
            name: float((fields[key].data - truth.data).norm(dim=1)[0][inside].mean())
            for name, key in (("iso", "iso"), ("rso", "after"))
        },
        "outside_mm": float(change[beyond].mean()),
        "folded_voxels": {
            name: int((smallest_corner_determinant(fields[name].to_voxels()) <= 0).sum())
            for name in ("before", "after")
        },
        "cpu_seconds": {"iso": iso_seconds, "rso": rso_seconds},
        "curves": {
            "iso": [(0, general), *iso_curve],
            "rso": [(0, general), *first_curve, *((ISO_SHORT + n, value) for n, value in rso_curve)],
        },
    }


def landmark_rows(case: Case, seed: int) -> list[dict[str, Any]]:
    """Ten landmark pairs of 5 mm error on a map that is right but for a smooth error."""
    wrong = elastic(case.fixed, seed, 9.0, 30.0)
    accepted = CompositeTransform([wrong.displacement(case.fixed.grid), case.truth.displacement(case.fixed.grid)])
    body = case.fixed.grid.to_world(torch.nonzero(body_mask(case.fixed)).flip(1).numpy().astype(np.float64))
    random = np.random.default_rng(seed)
    body = body[random.permutation(len(body))[:20_000]]
    true = case.truth.transform_points(body)
    error = np.linalg.norm(accepted.transform_points(body) - true, axis=1)
    near = spread_out(body, np.flatnonzero(np.abs(error - LANDMARK_ERROR_MM) < 0.25), LANDMARKS)
    held = np.setdiff1d(np.arange(len(body)), near)[:HELD_OUT]
    rows = []
    for exact in (False, True):
        pairs = LandmarkPairs(body[near], true[near], exact=[exact] * len(near))
        began = time.process_time()
        result = refine(
            accepted, case.fixed, case.moving, points=pairs, iterations=LANDMARK_ITERATIONS, device="cpu"
        )
        seconds = time.process_time() - began

        def mean_error(transform: Transform, chosen: FloatArray) -> float:
            return float(np.linalg.norm(transform.transform_points(body[chosen]) - true[chosen], axis=1).mean())

        steps = result.report["details"]["refinement"]["steps"]
        rows.append(
            {
                "name": case.name,
                "exact": exact,
                "landmarks_mm": [mean_error(t, near) for t in (accepted, result.transform)],
                "landmarks_worst_mm": float(pairs.errors(result.transform).max()),
                "held_out_mm": [mean_error(t, held) for t in (accepted, result.transform)],
                "new_folds": max(
                    step["folded_voxels"]["after"] - step["folded_voxels"]["before"] for step in steps
                ),
                "cpu_seconds": seconds,
            }
        )
    return rows


def spread_out(points: FloatArray, candidates: Any, count: int, distance_mm: float = 25.0) -> Any:
    """The first candidates that lie far from one another."""
    chosen: list[int] = []
    for index in candidates:
        if all(np.linalg.norm(points[index] - points[other]) > distance_mm for other in chosen):
            chosen.append(int(index))
        if len(chosen) == count:
            break
    return np.array(chosen)


def markdown(rows: list[dict[str, Any]], landmarks: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [
        "| pair | similarity | RMSE HU: start | ISO 500 | ISO 100 + RSO 400 | ratio | error in the box mm: ISO | "
        "RSO | outside mm | folded voxels | RSO CPU s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        rmse, folded = row["rmse"], row["folded_voxels"]
        lines.append(
            f"| {row['name']} | {row['similarity']} | {rmse['general']:.0f} | {rmse['iso']:.0f} | "
            f"{rmse['rso']:.0f} | {rmse['ratio']:.2f} | {row['error_mm']['iso']:.2f} | "
            f"{row['error_mm']['rso']:.2f} | {row['outside_mm']:.3f} | {folded['before']} to {folded['after']} | "
            f"{row['cpu_seconds']['rso']:.1f} |"
        )
    lines += [
        "",
        "| pair | landmarks | at them, mm | after | worst | held out, mm | after | new folds at most | CPU s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in landmarks:
        (before, after), (held, held_after) = row["landmarks_mm"], row["held_out_mm"]
        lines.append(
            f"| {row['name']} | {'exact' if row['exact'] else 'soft, 1 mm'} | {before:.2f} | {after:.2f} | "
            f"{row['landmarks_worst_mm']:.2f} | {held:.2f} | {held_after:.2f} | "
            f"{row['new_folds']} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """RMSE in the box against iterations, one panel a pair."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(rows), 3.0), layout="constrained")
    for axes, row in zip(np.atleast_1d(figure.subplots(1, len(rows))), rows, strict=True):
        for name, label, style in (("iso", "ISO", "r-"), ("rso", "ISO, then RSO from 100", "b--")):
            axes.plot(*zip(*row["curves"][name], strict=True), style, label=label)
        axes.set_title(f"{row['name']} ({row['similarity']})", fontsize=9)
        axes.set_xlabel("iteration")
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("RMSE in the box, HU")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("SAMREG_DATA"), help="data folder")
    parser.add_argument("--out", type=Path, required=True, help="where the numbers and the picture go")
    parser.add_argument("--volumes", default=",".join(VOLUMES), help="files of the data folder, comma-separated")
    parser.add_argument("--similarities", default="mse,lncc", help="mse, lncc or mind, comma-separated")
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    landmarks: list[dict[str, Any]] = []
    for number, name in enumerate(options.volumes.split(",")):
        case = make_case(options.data / name, options.seed + 10 * number)
        for similarity in options.similarities.split(","):
            rows.append(region_row(case, Similarity(similarity)))
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "curves"}), flush=True)
        landmarks += landmark_rows(replace(case), options.seed + number)
        for row in landmarks[-2:]:
            print(json.dumps(row), flush=True)
        (options.out / "refinement.json").write_text(
            json.dumps({"regions": rows, "landmarks": landmarks}, indent=1)
        )
        (options.out / "refinement.md").write_text(markdown(rows, landmarks))
        draw_curves([row for row in rows if row["similarity"] == "mse"], options.out / "refinement.png")


if __name__ == "__main__":
    main()
