"""Small CT-like volumes with a manifest, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SIZE = 28
SPACING = 3.0


def write_volume(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """An ellipsoid body with two organs at nearly fixed places, and its manifest item."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:SIZE, :SIZE, :SIZE] - (SIZE - 1) / 2 + rng.uniform(-1, 1, 3)[:, None, None, None]
    body = (z / 14) ** 2 + (y / 11) ** 2 + (x / 12) ** 2 < 1
    labels = np.zeros(body.shape, np.uint8)
    labels[(z - 4) ** 2 + (y - 3) ** 2 + (x - 4) ** 2 < 9] = 1
    labels[(z + 4) ** 2 + (y + 2) ** 2 + (x + 4) ** 2 < 9] = 2
    labels[(z + 2) ** 2 + (y - 2) ** 2 + (x - 1) ** 2 < 6] = 3
    hu = np.where(body, rng.normal(40, 30, body.shape), -1024.0) + 200.0 * labels
    _write(hu.astype(np.int16), folder / f"{name}.nii.gz")
    _write(labels, folder / f"{name}_labels.nii.gz")
    return {
        "name": name,
        "file": f"{name}.nii.gz",
        "subject": name,
        "modality": "CT",
        "region": "head and neck" if seed % 2 else "thorax",
        "licence": "made for a test",
        "source": "synthetic",
        "labels": [{"file": f"{name}_labels.nii.gz", "scheme": "test"}],
    }


def write_manifest(folder: Path, count: int = 4, extra: tuple[dict[str, Any], ...] = ()) -> Path:
    """`count` volumes named v0, v1, ... and any further items."""
    items = [write_volume(folder, f"v{index}", index) for index in range(count)]
    path = folder / "manifest.json"
    path.write_text(json.dumps({"items": [*items, *extra]}))
    return path


def tiny_configuration(**changes: Any) -> dict[str, Any]:
    """Settings of a run of a few seconds."""
    return {
        "network": {"widths": [16, 32, 48, 56], "embedding_channels": 16},
        "iterations": 4,
        "pairs": 1,
        "warmup": 1,
        "views": {"shape": [32, 32, 32], "offset": 4.0, "far_probability": 0.0, "elastic_grid": [3, 3, 3]},
        "loss": {
            "queries": 16,
            "pool": 128,
            "hard_negatives": 16,
            "random_negatives": 64,
            "other_negatives": 64,
            "organ_targets": 16,
            "organ_queries": 8,
        },
        "mixed_precision": False,
        **changes,
    }


def _write(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING] * 3)
    sitk.WriteImage(image, str(path))
