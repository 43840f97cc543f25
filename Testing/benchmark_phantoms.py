"""Tiny suites for the benchmark's tests: balls with labels, landmarks and a known map; methods that misbehave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SIZE, SPACING = (22, 20, 18), (3.0, 3.5, 4.0)
OFFSET = np.array([6.0, -7.0, 8.0])
"""The true translation from fixed to moving world, in mm."""

GOOD_METHOD = """
import numpy as np
from SAMRegistrationLib.benchmark.peers.contract import Outcome

def load():
    pass

def register(task):
    matrix = np.eye(4)
    matrix[:3, 3] = task.settings.get("offset", (0, 0, 0))
    matrix[:3, 3] += np.random.default_rng(task.seed).normal(size=3) * task.settings.get("noise", 0.0)
    return Outcome((matrix @ task.begin,), {"guess": 0.25}, {"threads": task.threads}, ("only a guess",))
"""

CRASHING_METHOD = """
import os
def load():
    pass
def register(task):
    print("about to fall", flush=True)
    os.abort()
"""

RAISING_METHOD = """
def load():
    pass
def register(task):
    raise RuntimeError("it diverged")
"""

HANGING_METHOD = """
import subprocess, sys, time
def load():
    pass
def register(task):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (task.fixed.parent / "child.pid").write_text(str(child.pid))
    time.sleep(600)
"""

MISSING_METHOD = """
def load():
    import no_such_package_anywhere
def register(task):
    pass
"""

SILENT_METHOD = """
import sys
def load():
    pass
def register(task):
    sys.exit(0)
"""

METHODS = {
    "good": GOOD_METHOD,
    "crashing": CRASHING_METHOD,
    "raising": RAISING_METHOD,
    "hanging": HANGING_METHOD,
    "missing": MISSING_METHOD,
    "silent": SILENT_METHOD,
}


def ball(center: np.ndarray[Any, Any], radius: float) -> np.ndarray[Any, Any]:
    """A mask (z, y, x) of a ball given in mm from the first voxel."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in reversed(SIZE)), indexing="ij")
    positions = np.stack([x, y, z], axis=-1) * np.asarray(SPACING)
    return np.linalg.norm(positions - center, axis=-1) < radius


def image_of(values: np.ndarray[Any, Any], origin: np.ndarray[Any, Any]) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    image.SetOrigin(origin.tolist())
    return image


def write_volumes(folder: Path, name: str, origin: np.ndarray[Any, Any]) -> None:
    """A body with two organs, and its labels; the same voxels wherever they lie."""
    values = np.full(tuple(reversed(SIZE)), -1000, dtype=np.int16)
    values[ball(np.array([31.0, 33.0, 34.0]), 26.0)] = 20
    labels = np.zeros(values.shape, dtype=np.uint8)
    for label, center in ((1, (24.0, 30.0, 34.0)), (2, (42.0, 38.0, 36.0))):
        labels[ball(np.asarray(center), 8.0)] = label
        values[labels == label] = 200 * label
    sitk.WriteImage(image_of(values, origin), str(folder / f"{name}.nii.gz"))
    sitk.WriteImage(image_of(labels, origin), str(folder / f"{name}_labels.nii.gz"))


def write_suite(folder: Path, methods: list[Any], **more: Any) -> Path:
    """A suite of two pairs with labels, landmarks and a known map, and the files that it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_volumes(folder, "fixed", np.array([5.0, -4.0, 3.0]))
    write_volumes(folder, "moving", np.array([5.0, -4.0, 3.0]) + OFFSET)
    points = np.array([[30.0, 26.0, 37.0], [44.0, 30.0, 40.0]])
    rows = [",".join(map(str, [*p, *(p + OFFSET)])) for p in points]
    header = "fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z"
    (folder / "landmarks.csv").write_text("\n".join([header, *rows]) + "\n")
    truth = np.eye(4)
    truth[:3, 3] = OFFSET
    pair = {
        "dataset": "balls",
        "family": "balls",
        "fixed": "fixed.nii.gz",
        "moving": "moving.nii.gz",
        "fixed_labels": "fixed_labels.nii.gz",
        "moving_labels": "moving_labels.nii.gz",
        "labels": "organs",
        "landmarks": "landmarks.csv",
        "truth": {"mask": "body", "matrix": truth.tolist()},
    }
    suite = {
        "name": "balls",
        "description": "Two balls & <organs>.",
        "seed": 7,
        "datasets": {"balls": {"kind": "files", "root": "."}},
        "label_tables": {
            "organs": [
                {"value": 1, "name": "left", "group": "organs"},
                {"value": 2, "name": "right", "group": "organs", "scored": False},
            ]
        },
        "pairs": [pair | {"name": "first"}, pair | {"name": "second"}],
        "methods": methods,
        **more,
    }
    file = folder / "balls.json"
    file.write_text(json.dumps(suite))
    return file


def method(folder: Path, kind: str, name: str | None = None, **options: Any) -> dict[str, Any]:
    """The entry of a method of `METHODS` for a suite, its code written into a file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}_method.py"
    file.write_text(METHODS[kind])
    return {"name": name or kind, "module": str(file), **options}
