"""The request `refine`: an accepted transform made better in boxes and at landmarks, from files to files.

Parameters (positions and lengths in LPS mm):

- `fixed`, `moving`: files, as of `register`.
- `transform`: the file of the accepted map from fixed to moving world, such as the `transform` that `register` or
  an earlier `refine` returned. To undo a refinement, go on with the file from before it.
- `output`, `outputs`, `inverse`, `device`, `allow_cpu`, `fixed_mask`, `moving_mask`, `model`: as of `register`.
- `regions`: boxes, worked on one after the other, each `{"center": [x, y, z], "size": [x, y, z], "axes": 3x3,
  "on": "fixed" | "moving"}`. `size` is whole sides; `axes` (rows of a matrix whose columns are the directions of
  the sides) and `on` may be left out.
- `points`: landmark pairs, each `{"fixed": [x, y, z], "moving": [x, y, z], "weight_mm": 1.0, "exact": false,
  "label": ""}`, the last three of which may be left out. A small weight pulls hard.
- `image_iterations`: of the whole image before everything else; 0 for none.
- `similarity`: "lncc", "mse", "mind" or "sam". `iterations`: for each box. `margin_mm`: nothing changes beyond.

The result is that of `register` with, in addition:

- `regions`: for each box `rmse_before` and `rmse_after` (in the volumes' unit: HU for CT; null where nothing can
  be compared), `loss` (one number an iteration), and `center`, `size`, `axes` of the box in fixed space.
- `landmarks`: `tre_before_mm` and `tre_after_mm`, one number a pair, and `suspicious`, the indices (from 0) of
  pairs that contradict the rest.

Stages of the progress: "prepare", "whole image", "region 1", "region 2", ..., "landmarks", "finish", "invert",
"write". Nothing is written unless everything is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, UsageError
from ..image import Image
from ..image_io import read_image
from ..refinement.landmarks import LandmarkPairs
from ..refinement.refine import RefinementResult, refine
from ..refinement.regions import RegionRequest
from ..report import describe_input
from .cache import DeviceCaches
from .dispatch import Task
from .feature_store import EmbeddingCounts, FeatureStore
from .matching import file_identity
from .registration import SHARE_OF_WRITING, Registrations


class Refinements:
    """Refines registrations with volumes and features that are kept for the next time.

    Args:
        caches: of every device.
        store: of the features in them.
        registrations: knows what to do where memory runs out.
    """

    def __init__(self, caches: DeviceCaches, store: FeatureStore, registrations: Registrations) -> None:
        self._caches = caches
        self._store = store
        self._registrations = registrations

    def refine(
        self,
        task: Task,
        *,
        fixed: str,
        moving: str,
        output: str,
        transform: str | None = None,
        regions: list | None = None,
        points: list | None = None,
        image_iterations: int = 0,
        similarity: str = "lncc",
        iterations: int = 400,
        margin_mm: float | int = 20.0,
        device: str = "auto",
        allow_cpu: bool = False,
        fixed_mask: str | None = None,
        moving_mask: str | None = None,
        model: str = "sam",
        inverse: bool = False,
        outputs: list | None = None,
    ) -> dict[str, Any]:
        """Refine into a job folder; see the module for the parameters and the result."""
        if transform is None:
            raise UsageError("there is no registration to refine yet: register the volumes first")
        requests = [RegionRequest.from_json(region) for region in regions or []]
        pairs = LandmarkPairs.from_json(points or [])

        def work(target: torch.device, counts: EmbeddingCounts) -> RefinementResult:
            task.progress("prepare", 0.0)
            paths = {"fixed": fixed, "moving": moving, "transform": transform}
            return refine(
                transform,
                self._volume(fixed),
                self._volume(moving),
                regions=requests,
                points=pairs,
                image_iterations=image_iterations,
                similarity=similarity,
                iterations=iterations,
                margin_mm=margin_mm,
                device=target,
                fixed_mask=fixed_mask,
                moving_mask=moving_mask,
                model=model,
                progress=lambda stage, fraction: task.progress(stage, fraction * (1 - SHARE_OF_WRITING)),
                extractors=self._store.extractors(counts),
                sources={name: self._described(name, path) for name, path in paths.items()},
            )

        done = self._registrations.into_folder(task, work, output, device, allow_cpu, inverse, outputs or [])
        return {**done, **_measured(done["report"]["details"]["refinement"])}

    def _volume(self, path: str) -> Image:
        """A volume from its file, or as it was read last time."""
        image: Image = self._kept("volume", path, lambda: read_image(path), lambda image: image.data.nbytes)
        return image

    def _described(self, name: str, path: str) -> dict[str, Any]:
        image = None if name == "transform" else self._volume(path)
        described: dict[str, Any] = self._kept(
            "description", path, lambda: describe_input(image, Path(path)), lambda _: 1000
        )
        return described

    def _kept(self, kind: str, path: str, compute: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        if not Path(path).exists():
            what = "transform file" if Path(path).suffix in (".h5", ".tfm", ".txt", ".mat") else "file"
            raise InputError(f"{what} not found: {path}")
        cache = self._caches.of("cpu")
        key = (kind, file_identity(Path(path)))
        found = cache.get(key)
        if found is None:
            found = compute()
            cache.put(key, found, size(found), f"{kind} of {Path(path).name}")
        return found


def _measured(found: dict[str, Any]) -> dict[str, Any]:
    """What a host shows of `details.refinement` in a report."""
    regions = [step for step in found["steps"] if step["kind"] == "region"]
    landmarks = found.get("landmarks", {})
    each = landmarks.get("per_landmark", [])
    return {
        "regions": [
            {
                "rmse_before": step["rmse"]["before"],
                "rmse_after": step["rmse"]["after"],
                **{name: step[name] for name in ("loss", "center", "size", "axes")},
            }
            for step in regions
        ],
        "landmarks": {
            "tre_before_mm": [landmark["before_mm"] for landmark in each],
            "tre_after_mm": [landmark["after_mm"] for landmark in each],
            "suspicious": landmarks.get("suspicious", []),
        },
    }
