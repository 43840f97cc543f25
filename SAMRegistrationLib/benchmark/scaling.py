"""The command ``samreg scaling``: how time and memory of every stage of a preset grow with the size of volumes.

A CT is repeated in mirror images until it fills cubes of different numbers of voxels of 2 mm, so that every voxel
of every size has content of the same kind; the moving volume is the same one under a smooth deformation, with
noise. Every size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..image import Image

SPACING_MM = 2.0
ALLOWED_FACTOR = 8.5
"""Doubling every side makes eight times the voxels."""

_ELASTIC_MM, _ELASTIC_SCALE_MM, _NOISE_HU = 8.0, 25.0, 10.0
_RESET_PEAK = Path("/proc/self/clear_refs")
_COLUMNS = ("stage", "side", "seconds", "processor_seconds", "memory_mib")


def add_scaling_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``scaling`` to a parser; loads nothing that is needed only to run it."""
    parser = subparsers.add_parser(
        "scaling", help="measure how time and memory of every stage of a preset grow with the volumes' size"
    )
    parser.add_argument("volume", metavar="CT", type=Path, help="volume whose mirror images fill the cubes")
    parser.add_argument("--sides", default="64,128,256", help="voxels along each axis (default: %(default)s)")
    parser.add_argument("--preset", default="default", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("-o", "--output", metavar="CSV", type=Path, help="also write the table to a file")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)


def run_scaling(options: argparse.Namespace) -> int:
    """Carry out ``samreg scaling``.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ..errors import UsageError

    if options.only:
        print(json.dumps(measure(options.volume, options.only, options.preset, options.device, options.threads)))
        return 0
    try:
        sides = sorted({int(side) for side in options.sides.split(",")})
    except ValueError:
        raise UsageError(f"--sides needs whole numbers, not {options.sides!r}") from None
    rows: list[dict[str, Any]] = []
    for side in sides:
        rows += _in_own_process(options, side)
        if options.output:
            _write(rows, options.output)
    print(table(rows))
    return 0


def _write(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """The table as CSV, anew after every size: large ones may take too long."""
    with output.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Seconds and memory per stage and size, and the factor by which doubling every side multiplies them."""
    lines = [f"{'stage':<28}{'side':>6}{'s':>9}{'CPU s':>9}{'MiB':>8}   per doubling: CPU s, MiB"]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        before: dict[str, Any] | None = None
        for row in (row for row in rows if row["stage"] == stage):
            line = (
                f"{stage:<28}{row['side']:>6}{row['seconds']:>9.2f}"
                f"{row['processor_seconds']:>9.2f}{row['memory_mib']:>8.0f}"
            )
            if before is not None:
                factors = [doubling_factor(before, row, key) for key in ("processor_seconds", "memory_mib")]
                verdict = "too much" if max(factors) > ALLOWED_FACTOR else ""
                line += f"   {factors[0]:>6.1f} {factors[1]:>6.1f}  {verdict}"
            lines.append(line.rstrip())
            before = row
    return "\n".join(lines)


def doubling_factor(smaller: dict[str, Any], larger: dict[str, Any], key: str) -> float:
    """By how much a measure grows when every side doubles, from two sides of any ratio; 0 for what is not used."""
    if smaller[key] <= 0 or larger[key] <= 0:
        return 0.0
    return float((larger[key] / smaller[key]) ** (1 / math.log2(larger["side"] / smaller["side"])))


def measure(volume: Path, side: int, preset: str, device: str, threads: int) -> list[dict[str, Any]]:
    """Seconds, seconds of all processor cores and peak memory of every stage, on cubes of `side` voxels.

    The memory is the most that the process (on a GPU: the device) held during the stage, less what it held before
    the registration.
    """
    import torch

    from ..image_io import read_image
    from ..memory_reuse import give_back
    from ..pipeline import register

    torch.set_num_threads(threads)
    fixed, moving = cubes(read_image(volume), side)
    # What making them left behind would be used by the first stage, which then seemed to need nothing.
    give_back()
    watch = _Watch()
    result = register(fixed, moving, preset=preset, device=device, progress=watch)
    stages = {stage["name"]: stage for stage in result.report["stages"]}
    return [
        {
            "stage": name,
            "side": side,
            "seconds": stages[name]["seconds"],
            "processor_seconds": watch.processor_seconds[name],
            "memory_mib": stages[name]["device_peak_memory_mib"] or watch.memory_mib[name],
        }
        for name in stages
    ]


def cubes(image: Image, side: int) -> tuple[Image, Image]:
    """A fixed volume of `side` voxels of 2 mm along each axis, and a moving one made from it."""
    import numpy as np
    import torch

    from ..grid import Grid
    from ..image import Image
    from ..synthetic import deform, elastic, noise

    own = image.canonical()
    resampled = own.resampled(own.grid.resampled(SPACING_MM)).data.numpy()
    padding = [(max(0, side - n) // 2, max(0, side - n) - max(0, side - n) // 2) for n in resampled.shape]
    filled = np.pad(resampled, padding, mode="symmetric")
    middle = tuple(slice((n - side) // 2, (n - side) // 2 + side) for n in filled.shape)
    grid = Grid((side,) * 3, (SPACING_MM,) * 3)
    fixed = Image(torch.from_numpy(filled[middle].copy()), grid, image.pixel_type, image.modality)
    return fixed, noise(deform(fixed, elastic(fixed, 1, _ELASTIC_MM, _ELASTIC_SCALE_MM)), 1, _NOISE_HU)


class _Watch:
    """Listens to a registration's progress and notes what each stage takes."""

    def __init__(self) -> None:
        from ..metrics.resources import resident_memory

        self.processor_seconds: dict[str, float] = {}
        self.memory_mib: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._before = resident_memory() or 0.0

    def __call__(self, stage: str, _: float) -> None:
        from ..metrics.resources import peak_memory

        now = time.process_time()
        if stage not in self._began:
            self._began[stage] = now
            _forget_peak()
        self.processor_seconds[stage] = now - self._began[stage]
        self.memory_mib[stage] = max(0.0, peak_memory() - self._before)


def _forget_peak() -> None:
    """Let the peak memory of this process start anew, where the platform can."""
    if _RESET_PEAK.exists():
        try:
            _RESET_PEAK.write_text("5", encoding="ascii")
        except OSError:
            return


def _in_own_process(options: argparse.Namespace, side: int) -> list[dict[str, Any]]:
    from ..errors import RegistrationError

    command = [sys.executable, "-m", "SAMRegistrationLib", "scaling", str(options.volume), "--only", str(side)]
    for name in ("preset", "device", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise RegistrationError(f"the registration of {side} voxels along each axis failed")
    rows: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return rows
