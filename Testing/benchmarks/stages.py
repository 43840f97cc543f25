"""Seconds and peak memory of every stage of a registration at the size the time budget is given for.

    python -m Testing.benchmarks.stages [--preset default] [--device cpu|cuda] [--repeats 1] [--warm]

Two real chest CTs of different patients are stretched to 192 x 160 x 256 voxels of 2 mm each, so that every voxel
has content. Each part runs in a process of its own, since the peak memory of a process never falls:
the registration stage by stage, the cost volume (48 x 40 x 64, N = 3, 256 channels), and the features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image, write_image
from SAMRegistrationLib.metrics import StageRecorder

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = (192, 160, 256)
SPACING_MM = 2.0
FIXED, MOVING = "thorax/lidc0405.nii.gz", "thorax/acrin6668_042.nii.gz"
COST_VOLUME_SHAPE = (256, 64, 40, 48)
COST_VOLUME_RADIUS = 3
FEATURES = ("mind", "sam")

Part = Callable[[argparse.Namespace], dict[str, Any]]


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part:
        if arguments.warm:
            PARTS[arguments.part](arguments)
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="stages_") as folder:
        arguments.volumes = Path(folder)
        for name, file in (("fixed", FIXED), ("moving", MOVING)):
            write_image(stretched(read_image(arguments.data / file)), _volume(arguments, name))
        for part in PARTS:
            for _ in range(arguments.repeats):
                _print_table(part, _in_own_process(part, arguments))


def stretched(image: Image) -> Image:
    """The volume resampled to the benchmark's size, its voxels then declared to be cubes of 2 mm."""
    resampled = image.resampled(image.grid.resized(SIZE))
    grid = resampled.grid
    return replace(resampled, grid=Grid(grid.size, (SPACING_MM,) * 3, grid.origin, grid.direction))


def measure_registration(arguments: argparse.Namespace) -> dict[str, Any]:
    """The stages as the library itself reports them."""
    from SAMRegistrationLib import register

    began = time.perf_counter()
    result = register(
        _volume(arguments, "fixed"),
        _volume(arguments, "moving"),
        preset=arguments.preset,
        device=arguments.device,
    )
    total = time.perf_counter() - began
    keys = ("stages", "peak_memory_mib", "device_peak_memory_mib")
    return {key: result.report[key] for key in keys} | {"seconds": total}


def measure_cost_volume(arguments: argparse.Namespace) -> dict[str, Any]:
    """One cost volume of random unit vectors, in single and, on a GPU, in half precision."""
    from SAMRegistrationLib.solvers.cost_volume import cost_volume

    generator = torch.Generator().manual_seed(0)
    fixed, moving = (
        torch.nn.functional.normalize(torch.randn(1, *COST_VOLUME_SHAPE, generator=generator), dim=1).to(
            arguments.device
        )
        for _ in range(2)
    )
    recorder = StageRecorder(device=arguments.device)
    if arguments.device.startswith("cuda"):
        fixed, moving = fixed.half(), moving.half()
        cost_volume(fixed, moving, COST_VOLUME_RADIUS)
    with recorder.stage("cost volume"):
        cost_volume(fixed, moving, COST_VOLUME_RADIUS)
    return recorder.summary()


def measure_features(arguments: argparse.Namespace) -> dict[str, Any]:
    """The features of one volume, by each extractor that there is."""
    from SAMRegistrationLib.errors import RegistrationError
    from SAMRegistrationLib.features.registry import get_extractor
    from SAMRegistrationLib.features.sam import SamExtractor

    image = read_image(_volume(arguments, "fixed"))
    recorder = StageRecorder(device=arguments.device)
    for name in FEATURES:
        try:
            extractor = get_extractor(name, arguments.device, strict=True)
        except RegistrationError as error:
            print(f"{name} features: {error}", file=sys.stderr)
            continue
        with recorder.stage(f"{name} features"):
            extractor.extract(image)
        if isinstance(extractor, SamExtractor):
            volume = image.to(arguments.device).tensor()
            with recorder.stage(f"{name} network"):
                extractor.extract_tensor(volume)
    return recorder.summary()


PARTS: dict[str, Part] = {
    "cost volume": measure_cost_volume,
    "features": measure_features,
    "registration": measure_registration,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m Testing.benchmarks.stages", description=__doc__)
    data = os.environ.get("SAMREG_DATA", REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="data folder (SAMREG_DATA)")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="do everything once before, as a worker has")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--volumes", type=Path, help=argparse.SUPPRESS)
    return parser


def _volume(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.volumes / f"{name}.nii.gz"


def _in_own_process(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "Testing.benchmarks.stages", "--part", part]
    for name in ("data", "preset", "device", "threads", "volumes"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--warm"] if arguments.warm else []
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if ended.returncode:
        return {"failed": f"ended with status {ended.returncode}"}
    return json.loads(ended.stdout.splitlines()[-1])


def _print_table(part: str, summary: dict[str, Any]) -> None:
    if "failed" in summary:
        print(f"{part}: {summary['failed']}\n", flush=True)
        return
    print(f"{part:<34}{'seconds':>9}{'peak + MiB':>12}{'device MiB':>12}")
    for stage in summary["stages"]:
        device = stage["device_peak_memory_mib"]
        print(
            f"  {stage['name']:<32}{stage['seconds']:>9.2f}{stage['peak_memory_growth_mib']:>12.0f}"
            f"{'' if device is None else format(device, '12.0f'):>12}"
        )
    device = summary["device_peak_memory_mib"]
    print(
        f"  {'all':<32}{summary['seconds']:>9.2f}{summary['peak_memory_mib']:>12.0f}"
        f"{'' if device is None else format(device, '12.0f'):>12}\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
