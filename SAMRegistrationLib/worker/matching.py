"""The requests `match` and `heat_map`: points found by embeddings that are kept, so that a query costs little.

`match` takes `fixed`, `moving` (files), `points` (list of [x, y, z], LPS mm), `method` ("sam", "quiz" or "joint"),
`model` (of the embeddings), `device`, `allow_cpu`. Its result holds, in the order of the points:

- `matched`: positions (LPS mm); every point gets one, also outside the volume or in air;
- `score`: cosine similarity of the embeddings at both ends, 1 at best, 0 where a point lies in air or outside;
- `support`: 0 to 1, how well the neighbors, or the answers to other points, agree;
- `cycle_mm`: how far from the point its partner's partner lies;
- `reason`: a sentence that says why the answer is doubtful, "" where it is not;

and `method`, `affine` (the 4x4 map of the whole body, fixed to moving, LPS mm, a start for a registration) and how
many `embeddings` were computed and reused. The first request of a pair prepares it, which takes seconds; the next
ones are answered at once, whatever the points.

`heat_map` takes `fixed`, `moving`, `point` ([x, y, z], LPS mm), `output` (file to write: .nrrd, .nii.gz, .mha)
and the same options but `method`. It writes the likeness (-1 to 1) of every voxel of the moving volume to the
point, on the moving volume's grid, and tells `output`, `highest` (the largest value) and `peak` (where, LPS mm).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, UsageError
from ..features.base import FeatureExtractor, Features
from ..files import require_writable_folder
from ..grid import FloatArray
from ..image_io import read_image, write_image
from ..matching import FeatureIndex, require_embeddings
from ..methods.joint_matching import point_matcher
from ..methods.point_matching import METHODS, EmbeddedVolume, PointMatcher
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
        method: str = "sam",
        model: str = "sam",
        device: str = "auto",
        allow_cpu: bool = False,
    ) -> dict[str, Any]:
        """Find points (LPS mm) of the fixed volume in the moving one; see the module for the result."""
        positions = _positions(points)
        if method not in METHODS:
            raise UsageError(f"there is no matching method {method!r}; there are {', '.join(METHODS)}")
        notes: list[str] = []
        target = usable_device(device, allow_cpu, notes.append)
        counts = EmbeddingCounts()
        matcher = self._matcher(task, (Path(fixed), Path(moving)), method, model, target, counts)
        with torch.inference_mode():
            found = matcher.match(positions)
        return {
            "matched": found.matched.tolist(),
            "score": found.score.tolist(),
            "support": found.support.tolist(),
            "cycle_mm": found.cycle_mm.tolist(),
            "reason": list(found.reason),
            "method": method,
            "affine": matcher.whole_body.matrix.tolist(),
            "embeddings": asdict(counts),
            "warnings": notes,
        }

    def heat_map(
        self,
        task: Task,
        *,
        fixed: str,
        moving: str,
        point: list,
        output: str,
        model: str = "sam",
        device: str = "auto",
        allow_cpu: bool = False,
    ) -> dict[str, Any]:
        """Write how much every voxel of the moving volume looks like a point; see the module for the result."""
        position = _positions([point])[0]
        file = Path(output).absolute()
        require_writable_folder(file.parent)
        notes: list[str] = []
        target = usable_device(device, allow_cpu, notes.append)
        extractor = self._extractor(model, target, EmbeddingCounts())
        matcher = PointMatcher(*self._volumes(task, (Path(fixed), Path(moving)), extractor, target))
        if not matcher.fixed.image.grid.contains(position):
            raise InputError("the point lies outside the fixed volume, where nothing is known of it")
        with torch.inference_mode():
            likeness = matcher.heat_map(position)
        task.progress("write", 0.9)
        write_image(likeness, file)
        highest = int(likeness.data.argmax())
        voxel = np.unravel_index(highest, likeness.grid.shape)[::-1]
        return {
            "output": str(file),
            "highest": float(likeness.data.flatten()[highest]),
            "peak": likeness.grid.to_world(voxel).tolist(),
            "warnings": notes,
        }

    def _matcher(
        self,
        task: Task,
        files: tuple[Path, Path],
        method: str,
        model: str,
        device: torch.device,
        counts: EmbeddingCounts,
    ) -> PointMatcher:
        """The matcher of a pair, prepared; from the cache if it was asked for before."""
        extractor = self._extractor(model, device, counts)
        key = ("matcher", method, extractor.name, str(device), *(file_identity(file) for file in files))
        cache = self._caches.of(device)
        known: PointMatcher | None = cache.get(key)
        if known is not None:
            return known
        volumes = self._volumes(task, files, extractor, device)
        with torch.inference_mode(False), torch.no_grad():
            matcher = point_matcher(method, *volumes, extractor)
            task.progress("index", 0.8)
            matcher.prepare()
        own = [index for index in matcher.indices if index not in (volumes[0].index, volumes[1].index)]
        size = sum(_bytes_of(index) for index in own)
        cache.put(key, matcher, size, f"{method} matching of {files[0].name} and {files[1].name}")
        return matcher

    def _extractor(self, model: str, device: torch.device, counts: EmbeddingCounts) -> FeatureExtractor:
        extractor = self._store.extractors(counts)(model, device)
        require_embeddings(extractor)
        return extractor

    def _volumes(
        self, task: Task, files: tuple[Path, Path], extractor: FeatureExtractor, device: torch.device
    ) -> tuple[EmbeddedVolume, EmbeddedVolume]:
        """Both volumes, prepared as for a registration, so that embeddings are shared with those, and indexed."""
        key = ("volumes", extractor.name, str(device), *(file_identity(file) for file in files))
        cache = self._caches.of(device)
        known: tuple[EmbeddedVolume, EmbeddedVolume] | None = cache.get(key)
        if known is not None:
            return known
        task.progress("read", 0.0)
        images = read_image(files[0]), read_image(files[1])
        task.progress("embed", 0.2)
        problem = prepare(extractor, images, _WORKING_SPACING_MM, device)
        fixed_features = problem.features_of(problem.fixed.tensor())
        task.progress("embed", 0.5)
        moving_features = extractor.extract(problem.moving)
        with torch.inference_mode(False), torch.no_grad():
            fixed = EmbeddedVolume(images[0], _halved(fixed_features))
            moving = EmbeddedVolume(images[1], _halved(moving_features))
            size = _bytes_of(fixed.index) + _bytes_of(moving.index)
        cache.put(key, (fixed, moving), size, f"{extractor.name} index of {files[0].name} and {files[1].name}")
        return fixed, moving


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


def _halved(features: Features) -> Features:
    """In half precision, as on a GPU: an index takes much memory, and finds the same points in half of it."""
    coarse = features.coarse
    return Features(
        features.fine.to(dtype=torch.float16), None if coarse is None else coarse.to(dtype=torch.float16)
    )


def _bytes_of(index: FeatureIndex) -> int:
    held = [value for value in vars(index).values() if isinstance(value, torch.Tensor)]
    return index.vectors.nbytes + sum(tensor.nbytes for tensor in held)


def _positions(points: list) -> FloatArray:
    try:
        positions = np.array(points, dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise UsageError("points must be a list of [x, y, z] in LPS mm") from error
    if not len(positions) or not np.isfinite(positions).all():
        raise UsageError("points must be one or more positions of finite numbers")
    return positions
