"""The request `match`: points found by embeddings that are kept, so that a query costs next to nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, UsageError
from ..features.base import FeatureExtractor, Features
from ..grid import FloatArray, Grid
from ..image_io import read_image
from ..matching import FeatureIndex, match_structurally, require_matchable
from ..pipeline import prepare
from .cache import DeviceCaches
from .dispatch import Task
from .feature_store import EmbeddingCounts, FeatureStore
from .registration import usable_device

_WORKING_SPACING_MM = 2.0


class Matchings:
    """Finds points of one volume in another.

    Args:
        caches: of every device.
        store: of the features in them.
    """

    def __init__(self, caches: DeviceCaches, store: FeatureStore) -> None:
        self._caches = caches
        self._store = store

    def match(
        self,
        task: Task,
        *,
        fixed: str,
        moving: str,
        points: list,
        model: str = "sam",
        device: str = "auto",
        allow_cpu: bool = False,
    ) -> dict[str, Any]:
        """Find points (LPS mm) of the fixed volume in the moving one.

        Returns:
            `matched` positions (LPS mm), `score` (cosine similarity), `cycle_error` (mm), `support` (0 to 1, how
            well the neighbors agree; 0 where a point was matched alone) in the order of the points, and how many
            `embeddings` were computed and reused.
        """
        positions = _positions(points)
        notes: list[str] = []
        target = usable_device(device, allow_cpu, notes.append)
        counts = EmbeddingCounts()
        extractor = self._store.extractors(counts)(model, target)
        files = Path(fixed), Path(moving)
        key = ("index", extractor.name, str(target), *(file_identity(file) for file in files))
        cache = self._caches.of(target)
        known = cache.get(key)
        if known is None:
            known = _indexed(files, extractor, target, positions, task)
            size = sum(_bytes_of(index) for index in known[1:])
            cache.put(key, known, size, f"{extractor.name} index of {files[0].name} and {files[1].name}")
        grid, source, partner = known
        require_matchable(positions, grid, extractor)
        with torch.inference_mode():
            found = match_structurally(positions, source, partner)
        return {
            "matched": found.matched.tolist(),
            "score": found.score.tolist(),
            "cycle_error": found.cycle_error.tolist(),
            "support": found.support.tolist(),
            "embeddings": asdict(counts),
            "warnings": notes,
        }


def file_identity(path: Path) -> tuple[Any, ...]:
    """What changes when a file, or a file of a folder, is replaced: path, size and time.

    Raises:
        InputError: if there is no such file.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise InputError(f"file not found: {path}") from error
    return (str(path.resolve()), *((name, state.st_size, state.st_mtime_ns) for name, state in states))


def _indexed(
    files: tuple[Path, Path], extractor: FeatureExtractor, device: torch.device, points: FloatArray, task: Task
) -> tuple[Grid, FeatureIndex, FeatureIndex]:
    """The fixed volume's grid, and the vectors of both volumes, prepared as for a registration."""
    task.progress("read", 0.0)
    volumes = read_image(files[0]), read_image(files[1])
    require_matchable(points, volumes[0].grid, extractor)
    task.progress("embed", 0.2)
    problem = prepare(extractor, volumes, _WORKING_SPACING_MM, device)
    features = problem.features_of(problem.fixed.tensor())
    task.progress("embed", 0.5)
    moving_features = extractor.extract(problem.moving)
    task.progress("index", 0.8)
    with torch.no_grad():
        source = FeatureIndex.of_body(_halved(features), volumes[0])
        return volumes[0].grid, source, FeatureIndex.of_body(_halved(moving_features), volumes[1])


def _halved(features: Features) -> Features:
    """In half precision, as on a GPU: an index takes much memory, and finds the same points in half of it."""
    coarse = features.coarse
    return Features(
        features.fine.to(dtype=torch.float16), None if coarse is None else coarse.to(dtype=torch.float16)
    )


def _bytes_of(index: FeatureIndex) -> int:
    held = [index.map.data, *(value for value in vars(index).values() if isinstance(value, torch.Tensor))]
    return sum(tensor.nbytes for tensor in held)


def _positions(points: list) -> FloatArray:
    try:
        positions = np.array(points, dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise UsageError("points must be a list of [x, y, z] in LPS mm") from error
    if not len(positions) or not np.isfinite(positions).all():
        raise UsageError("points must be one or more positions of finite numbers")
    return positions
