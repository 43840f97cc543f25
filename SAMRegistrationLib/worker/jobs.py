"""The requests that a worker serves."""

from __future__ import annotations

from typing import Any

import torch

from ..evaluation import evaluate_files
from ..metrics.resources import resident_memory
from ..report import write_report
from ..warping import warp_file
from .cache import DeviceCaches
from .comparison import compare
from .dispatch import Handler, Task
from .feature_store import FeatureStore
from .machine import checked_device, describe
from .matching import Matchings
from .refinement import Refinements
from .registration import Registrations


class Jobs:
    """All requests by name, and what they share.

    Args:
        threads: CPU threads of the computation; torch's own choice by default.
        cache_bytes: memory for embeddings on each device; a share of what is free by default.
    """

    def __init__(self, threads: int | None = None, cache_bytes: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        _load_all_of_torch()
        self._caches = DeviceCaches(cache_bytes)
        store = FeatureStore(self._caches)
        registrations = Registrations(self._caches, store)
        matchings = Matchings(self._caches, store)
        self.handlers: dict[str, Handler] = {
            "hello": self.hello,
            "check_device": self.check_device,
            "register": registrations.register,
            "refine": Refinements(self._caches, store, registrations).refine,
            "match": matchings.match,
            "heat_map": matchings.heat_map,
            "compare": compare,
            "evaluate": self.evaluate,
            "apply": self.apply,
            "memory": self.memory,
            "forget": self.forget,
        }

    def hello(self, _: Task) -> dict[str, Any]:
        """What this machine offers; see `machine.describe`."""
        return describe()

    def check_device(self, _: Task, *, device: str = "auto") -> dict[str, Any]:
        """Compute something small on a device; see `machine.checked_device`."""
        return checked_device(device)

    def evaluate(
        self,
        task: Task,
        *,
        transform: str,
        fixed: str,
        moving: str,
        fixed_labels: str | None = None,
        moving_labels: str | None = None,
        fixed_points: str | None = None,
        moving_points: str | None = None,
        mask: str | None = None,
        output: str | None = None,
    ) -> dict[str, Any]:
        """Measure a transform; the result's `report` is also written to the file `output`, if that is given."""
        task.progress("evaluate", 0.0)
        report = evaluate_files(
            transform,
            fixed,
            moving,
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            fixed_points=fixed_points,
            moving_points=moving_points,
            mask=mask,
        )
        if output is not None:
            write_report(report, output)
        return {"report": report, "output": output}

    def apply(
        self, task: Task, *, transform: str, input: str, reference: str, output: str, labels: bool = False
    ) -> dict[str, Any]:
        """Resample a volume or label map of the moving space on the grid of a reference; see `warp_file`."""
        task.progress("apply", 0.0)
        warp_file(transform, input, reference, output, labels)
        return {"output": output}

    def memory(self, _: Task) -> dict[str, Any]:
        """What the worker holds: `resident_mib`, and the `caches` of every device with their contents."""
        return {"resident_mib": resident_memory(), "caches": self._caches.describe()}

    def forget(self, _: Task) -> dict[str, Any]:
        """Throw away all networks and embeddings."""
        self._caches.clear()
        return {}


def _load_all_of_torch() -> None:
    """Import now what torch imports at the first optimizer: for seconds, in which no work could be stopped."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
