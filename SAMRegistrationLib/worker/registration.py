"""The request `register`: with what memory and devices there are, from files to files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..device import resolve_device
from ..errors import InputError, NotEnoughMemoryError, UsageError, is_out_of_memory
from ..files import require_writable_folder
from ..inputs import TransformLike
from ..pipeline import RegistrationResult
from ..pipeline import register as register_volumes
from .cache import DeviceCaches
from .dispatch import Task
from .feature_store import EmbeddingCounts, FeatureStore
from .outputs import check_outputs, write_outputs

T = TypeVar("T")

SHARE_OF_WRITING = 0.08
"""Of all progress."""


class Registrations:
    """Registers volumes with features that are kept for the next time.

    Args:
        caches: of every device.
        store: of the features in them.
    """

    def __init__(self, caches: DeviceCaches, store: FeatureStore) -> None:
        self._caches = caches
        self._store = store

    def register(
        self,
        task: Task,
        *,
        fixed: str,
        moving: str,
        output: str,
        preset: str = "default",
        device: str = "auto",
        initial: str | list | None = None,
        fixed_mask: str | None = None,
        moving_mask: str | None = None,
        model: str | None = None,
        strict: bool = False,
        seed: int = 0,
        allow_cpu: bool = False,
        inverse: bool = False,
        outputs: list | None = None,
    ) -> dict[str, Any]:
        """Register files into a job folder; see `write_outputs` for what it holds then.

        Args:
            task: of the request.
            fixed, moving, preset, device, initial, fixed_mask, moving_mask, model, strict, seed: as of
                `pipeline.register`; `initial` may be a 4x4 matrix.
            output: job folder, need not exist.
            allow_cpu: where the wanted GPU is missing or too small, use the CPU and say so.
            inverse: also write the map from moving to fixed world.
            outputs: names of further outputs.
        """

        def work(target: torch.device, counts: EmbeddingCounts) -> RegistrationResult:
            return register_volumes(
                fixed,
                moving,
                preset=preset,
                device=target,
                initial=_start(initial),
                fixed_mask=fixed_mask,
                moving_mask=moving_mask,
                model=model,
                strict=strict,
                seed=seed,
                progress=lambda stage, fraction: task.progress(stage, fraction * (1 - SHARE_OF_WRITING)),
                extractors=self._store.extractors(counts),
            )

        return self.into_folder(task, work, output, device, allow_cpu, inverse, outputs or [])

    def into_folder(
        self,
        task: Task,
        work: Callable[[torch.device, EmbeddingCounts], RegistrationResult],
        output: str,
        device: str,
        allow_cpu: bool,
        inverse: bool,
        outputs: list,
    ) -> dict[str, Any]:
        """Do some work that maps volumes, and write what it gives; the arguments are those of `register`.

        Args:
            work: with a device, and the counts of the embeddings that it computes and reuses.
        """
        check_outputs(outputs)
        folder = Path(output).absolute()
        require_writable_folder(folder)
        counts, notes = EmbeddingCounts(), []

        def note(sentence: str) -> None:
            notes.append(sentence)
            task.log(sentence)

        target = usable_device(device, allow_cpu, note)
        result = self.with_enough_memory(lambda target: work(target, counts), target, allow_cpu, note)
        report = {**result.report, "warnings": [*result.report["warnings"], *notes]}
        report["details"] = {**report["details"], "embeddings": asdict(counts)}
        result = replace(result, report=report)
        written = write_outputs(result, folder, outputs, inverse, task, 1 - SHARE_OF_WRITING)
        return {**written, "report": report, "warnings": report["warnings"], "embeddings": asdict(counts)}

    def with_enough_memory(
        self, work: Callable[[torch.device], T], device: torch.device, allow_cpu: bool, note: Callable[[str], None]
    ) -> T:
        """Do some work; where memory runs out, again without what is kept, then on the CPU if that is allowed.

        Raises:
            NotEnoughMemoryError: if there is too little for all of that.
        """
        result, failure = _attempted(work, device)
        if failure is not None and self._caches.clear():
            result, failure = _attempted(work, device)
        if failure is not None and allow_cpu and device.type != "cpu":
            note(f"{failure}; the CPU was used instead")
            result, failure = _attempted(work, torch.device("cpu"))
        if failure is not None:
            raise NotEnoughMemoryError(failure)
        assert result is not None
        return result


def usable_device(name: str, allow_cpu: bool, note: Callable[[str], None]) -> torch.device:
    """The device of a name, or the CPU where it is not there and that is allowed.

    Raises:
        UsageError: for a name that means no device.
        InputError: for a device that is not there, if the CPU will not do.
    """
    try:
        return resolve_device(name)
    except InputError as error:
        if not allow_cpu:
            raise
        note(f"{error}; the CPU was used instead")
        return torch.device("cpu")


def _attempted(work: Callable[[torch.device], T], device: torch.device) -> tuple[T | None, str | None]:
    """The result, or the sentence with which memory ran out, once all that the work held is free again."""
    try:
        return work(device), None
    except (NotEnoughMemoryError, RuntimeError, MemoryError) as error:
        if not isinstance(error, NotEnoughMemoryError) and not is_out_of_memory(error):
            raise
        failure = str(error) if isinstance(error, NotEnoughMemoryError) else f"memory ran out on {device}"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None, failure


def _start(initial: str | list | None) -> TransformLike | None:
    if not isinstance(initial, list):
        return initial
    try:
        return np.array(initial, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError("the initial transform must be a path or a 4x4 matrix of numbers") from error
