"""What a user waits for: points looked up and a box refined, by a warm process with embeddings at hand.

    python -m Testing.benchmarks.interaction_times --device cuda [--out FILE] [--launches]

Volumes are the two chests of Resources/SampleData. Printed are seconds: the median and the largest of several
repetitions after one that is not counted. With `--launches` the operations that would each start a kernel on a
GPU are counted, too, and those that make it wait for the result, which can be done on any machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from SAMRegistrationLib.features.base import Features
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.methods.aligned_matching import points_in_body
from SAMRegistrationLib.methods.joint_matching import point_matcher
from SAMRegistrationLib.methods.point_matching import METHODS, EmbeddedVolume
from SAMRegistrationLib.models.quiz import load_quiz
from SAMRegistrationLib.refinement.refine import refine
from SAMRegistrationLib.roi import RegionOfInterest
from SAMRegistrationLib.transforms import AffineTransform

SAMPLES = Path(__file__).parents[2] / "Resources" / "SampleData"
FIXED, MOVING = "lidc0405.nii.gz", "lungdx0001.nii.gz"
POINTS = (1, 1000)
BOX_VOXELS = 64
ITERATIONS = 400
SIMILARITIES = ("mse", "lncc", "mind")
COUNTED_ITERATIONS = 10

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::unique", "aten::_unique2", "aten::equal")
"""Operations after which a GPU's results are waited for; copies to the CPU are counted by their device."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--similarities", default=",".join(SIMILARITIES))
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--launches", action="store_true", help="count them instead of taking times")
    options = parser.parse_args()
    device = torch.device(options.device)
    images = [read_image(SAMPLES / name, "CT") for name in (FIXED, MOVING)]
    measure = launches if options.launches else lambda run: times(run, device, options.repeats)
    rows: dict[str, Any] = {"device": device_name(device), "threads": torch.get_num_threads()}

    def told(name: str, run: Callable[[], Any]) -> None:
        rows[name] = measure(run)
        print(f"{name}: {rows[name]}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))

    accepted = measure_matching(images, device, [m for m in options.methods.split(",") if m], told)
    box = middle_box(images[0])
    for similarity in filter(None, options.similarities.split(",")):

        def once(similarity: str = similarity, iterations: int = ITERATIONS) -> float:
            return refined(images, accepted, box, similarity, device, iterations)

        if options.launches:
            before, after = (
                launches(lambda: once(iterations=1)),
                launches(lambda: once(iterations=1 + COUNTED_ITERATIONS)),
            )
            each = {key: (after[key] - before[key]) / COUNTED_ITERATIONS for key in after}
            print(f"an iteration of RSO, {similarity}: {each}", flush=True)
            continue
        once(iterations=2)
        inside: list[float] = []
        told(f"RSO {similarity}, whole call", lambda inside=inside: inside.append(once()))
        stage = f"RSO {similarity}, its stage"
        rows[stage] = summary(inside[1:] or inside)
        print(f"{stage}: {rows[stage]}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


def measure_matching(
    images: list[Image], device: torch.device, methods: list[str], told: Callable[[str, Callable[[], Any]], None]
) -> AffineTransform:
    """Times of looking up points by every method; returns the last one's map of the whole body."""
    extractor, model = get_extractor("sam", device), load_quiz()
    features: list[Features] = []

    def embed() -> None:
        with torch.no_grad():
            features[:] = [extractor.extract(image) for image in images]

    told("both embeddings", embed)
    transform = AffineTransform.translation(images[1].grid.center - images[0].grid.center)
    for method in methods:
        volumes = [EmbeddedVolume(image, each) for image, each in zip(images, features, strict=True)]
        matcher = point_matcher(method, volumes[0], volumes[1], extractor, model)
        began = time.perf_counter()
        matcher.prepare()
        print(f"{method}, prepared in {time.perf_counter() - began:.2f} s", flush=True)
        for count in POINTS:
            points = points_in_body(volumes[0], count, seed=count)
            told(f"{method}, {count} points", lambda m=matcher, p=points: m.match(p))
        transform = matcher.whole_body
    return transform


def middle_box(image: Image) -> RegionOfInterest:
    """A box of `BOX_VOXELS` cubed in the middle of a volume."""
    size = np.asarray(image.grid.size)
    lower = (size - BOX_VOXELS) // 2
    grid = image.grid.cropped(lower.tolist(), (lower + BOX_VOXELS).tolist())
    return RegionOfInterest.from_grid(grid)


def refined(
    images: list[Image],
    accepted: AffineTransform,
    box: RegionOfInterest,
    similarity: str,
    device: torch.device,
    iterations: int,
) -> float:
    """Refine a box; seconds of the stage that does so."""
    result = refine(
        accepted, *images, regions=[box], similarity=similarity, iterations=iterations, device=str(device)
    )
    stages = result.report["stages"]
    return next(float(stage["seconds"]) for stage in stages if stage["name"] == "region 1")


def times(run: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Median and largest seconds of repetitions, the first of which is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return summary(seconds[1:])


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and largest."""
    return {"median": round(statistics.median(seconds), 4), "largest": round(max(seconds), 4)}


def launches(run: Callable[[], Any]) -> dict[str, float]:
    """How many operations a run takes that start a kernel, and how many that wait for one."""
    with _Counter() as counter:
        run()
    return {"launches": counter.launches, "waits": counter.waits}


class _Counter(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        schema = function._schema
        self.waits += schema.name in WAITING
        is_view = any(
            result.alias_info is not None and not result.alias_info.is_write for result in schema.returns
        )
        self.launches += not is_view and schema.name not in ("aten::empty", "aten::empty_strided", "aten::detach")
        return function(*arguments, **(keywords or {}))


def device_name(device: torch.device) -> str:
    """What it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
