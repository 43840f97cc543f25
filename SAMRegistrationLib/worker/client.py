"""A worker for notebooks and scripts: the same requests as functions that wait for the answer.

with WorkerClient(device="auto") as client:
    result = client.register("fixed.nii.gz", "moving.nii.gz", preset="affine", output="job")
"""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Cancelled, InputError, NotEnoughMemoryError, RegistrationError, UsageError
from .command import worker_command, worker_environment
from .process_transport import ProcessTransport
from .protocol import CANCELLED, INPUT, MEMORY, USAGE
from .session import WorkerSession

PathLike = str | os.PathLike[str]
Progress = Callable[[str, float], None]
Result = dict[str, Any]

GRACE_SECONDS = 1.2
"""So that a call ends within two seconds even where the worker must be killed with a lot of memory."""

_TICK_SECONDS = 0.1
_CLOSE_SECONDS = 5.0
_ERRORS: dict[str, type[RegistrationError]] = {
    INPUT: InputError,
    USAGE: UsageError,
    MEMORY: NotEnoughMemoryError,
    CANCELLED: Cancelled,
}


class WorkerClient:
    """Talks to a worker process, which keeps its network and the embeddings of recent volumes between calls.

    Every call raises what the library would: `UsageError`, `InputError`, `NotEnoughMemoryError`, `Cancelled`; and
    `RegistrationError` if the worker died or failed. After any of them the next call works.

    Args:
        device: for all calls that do not say otherwise.
        python: interpreter of the worker.
        threads: CPU threads of the computation.
        cache_bytes: memory for embeddings on each device; by default a share of what is free.
        on_log: told every line that the worker logs.
        grace_seconds: how long a cancelled call may take to stop before its worker is killed.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        python: str = sys.executable,
        threads: int | None = None,
        cache_bytes: int | None = None,
        on_log: Callable[[str], None] | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.device = device
        command = worker_command(python, threads=threads, cache_bytes=cache_bytes)
        self._transport = ProcessTransport(command, worker_environment(os.environ))
        self._session = WorkerSession(self._transport, on_log=on_log, grace_seconds=grace_seconds)

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """Of the worker that was started last."""
        return self._transport.process_id

    @property
    def log(self) -> list[str]:
        """The last lines that the worker logged."""
        return self._session.log

    def register(
        self,
        fixed: PathLike,
        moving: PathLike,
        *,
        output: PathLike,
        preset: str | Path = "default",
        device: str | None = None,
        initial: PathLike | Sequence[Sequence[float]] | None = None,
        fixed_mask: PathLike | None = None,
        moving_mask: PathLike | None = None,
        model: str | None = None,
        strict: bool = False,
        seed: int = 0,
        allow_cpu: bool = False,
        inverse: bool = False,
        outputs: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> Result:
        """Register two files into the folder `output`.

        Args:
            fixed, moving, preset, device, fixed_mask, moving_mask, model, strict, seed, progress: as of
                `SAMRegistrationLib.register`.
            output: folder to write into.
            initial: file of a transform, or a 4x4 matrix in LPS mm.
            allow_cpu: where the wanted GPU is missing or too small, use the CPU and say so.
            inverse: also write the map from moving to fixed world.
            outputs: of "displacement", "warped" and "jacobian", which lie on the fixed grid.

        Returns:
            The paths `transform`, `field`, `inverse` and of the outputs; `affine`, `report`, and `embeddings`, how
            many were computed and reused.
        """
        parameters = {
            "fixed": _path(fixed),
            "moving": _path(moving),
            "output": _path(output),
            "preset": str(preset),
            "device": device or self.device,
            "initial": _path(initial) if isinstance(initial, str | os.PathLike) else _matrix(initial),
            "fixed_mask": _path(fixed_mask),
            "moving_mask": _path(moving_mask),
            "model": model,
            "strict": strict,
            "seed": seed,
            "allow_cpu": allow_cpu,
            "inverse": inverse,
            "outputs": list(outputs),
        }
        return self._call("register", parameters, progress)

    def match(
        self,
        fixed: PathLike,
        moving: PathLike,
        points: Iterable[Iterable[float]],
        *,
        method: str = "sam",
        model: str = "sam",
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Find points (LPS mm) of the fixed volume in the moving one; the reply is told in `worker.matching`."""
        parameters = {
            "fixed": _path(fixed),
            "moving": _path(moving),
            "points": _matrix(points),
            "method": method,
            "model": model,
            "device": device or self.device,
        }
        return self._call("match", parameters, progress)

    def heat_map(
        self,
        fixed: PathLike,
        moving: PathLike,
        point: Iterable[float],
        *,
        output: PathLike,
        model: str = "sam",
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Write the likeness of the moving volume's voxels to a point (LPS mm); see `worker.matching`."""
        parameters = {
            "fixed": _path(fixed),
            "moving": _path(moving),
            "point": [float(value) for value in point],
            "output": _path(output),
            "model": model,
            "device": device or self.device,
        }
        return self._call("heat_map", parameters, progress)

    def refine(
        self,
        fixed: PathLike,
        moving: PathLike,
        transform: PathLike | None,
        *,
        output: PathLike,
        regions: Iterable[Mapping[str, Any]] = (),
        points: Iterable[Mapping[str, Any]] = (),
        device: str | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result:
        """Refine the accepted map in the file `transform`, in boxes and at landmarks, into the folder `output`.

        The parameters, all the further `settings` among them, and the reply are told in `worker.refinement`.
        """
        paths = {"fixed": fixed, "moving": moving, "transform": transform, "output": output}
        parameters = {
            **{name: _path(path) for name, path in paths.items()},
            "regions": [dict(region) for region in regions],
            "points": [dict(point) for point in points],
            "device": device or self.device,
            **settings,
        }
        return self._call("refine", parameters, progress)

    def evaluate(self, transform: PathLike, fixed: PathLike, moving: PathLike, **files: PathLike | None) -> Result:
        """Measure a transform.

        Args:
            transform: from fixed to moving world.
            fixed: the fixed volume.
            moving: the moving volume.
            files: `fixed_labels`, `moving_labels`, `fixed_points`, `moving_points`, `mask`, and `output` for the
                report.
        """
        all_files = {"transform": transform, "fixed": fixed, "moving": moving, **files}
        return self._call("evaluate", {name: _path(path) for name, path in all_files.items()})

    def apply(
        self,
        transform: PathLike,
        source: PathLike,
        *,
        reference: PathLike,
        output: PathLike,
        labels: bool = False,
    ) -> Result:
        """Resample a volume, or a label map, on the grid of a reference into the file `output`."""
        files = {"transform": transform, "input": source, "reference": reference, "output": output}
        return self._call("apply", {**{name: _path(path) for name, path in files.items()}, "labels": labels})

    def hello(self) -> Result:
        """Versions, threads and devices of the worker."""
        return self._call("hello", {})

    def check_device(self, device: str | None = None) -> Result:
        """Compute something small on a device: `works`, and torch's `error` if it does not."""
        return self._call("check_device", {"device": device or self.device})

    def memory(self) -> Result:
        """What the worker holds, in RAM and in its caches."""
        return self._call("memory", {})

    def forget(self) -> None:
        """Let the worker throw away its networks and embeddings."""
        self._call("forget", {})

    def cancel(self) -> None:
        """Stop all calls at work, from another thread; they raise `Cancelled`."""
        for number in self._session.pending:
            self._session.cancel(number)

    def close(self) -> None:
        """End the worker."""
        self._session.close()
        until = time.monotonic() + _CLOSE_SECONDS
        while self._transport.is_running and time.monotonic() < until:
            self._session.tick()
            time.sleep(_TICK_SECONDS / 5)
        self._transport.kill()

    def _call(self, request: str, parameters: dict[str, Any], progress: Progress | None = None) -> Result:
        events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        number = self._session.send(
            request,
            parameters,
            on_progress=lambda stage, fraction, _: events.put(("progress", (stage, fraction))),
            on_result=lambda result: events.put(("result", result)),
            on_error=lambda message, hint, kind: events.put(("error", (message, hint, kind))),
        )
        try:
            return self._answer(events, progress)
        except BaseException:
            # Ctrl+C, or the listener wants no more: wait until the worker has stopped, which is soon.
            self._session.cancel(number)
            while number in self._session.pending:
                self._session.tick()
                time.sleep(_TICK_SECONDS / 5)
            raise

    def _answer(self, events: queue.SimpleQueue[tuple[str, Any]], progress: Progress | None) -> Result:
        while True:
            self._session.tick()
            try:
                kind, content = events.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                continue
            if kind == "result":
                return content
            if kind == "error":
                raise _error(*content)
            if progress is not None:
                progress(*content)


def _error(message: str, hint: str | None, kind: str) -> RegistrationError:
    if kind in _ERRORS:
        return _ERRORS[kind](message)
    return RegistrationError(f"{message}. {hint}" if hint else message)


def _path(path: PathLike | None) -> str | None:
    """Absolute, since the worker may be in another folder."""
    return None if path is None else os.fspath(Path(path).absolute())


def _matrix(rows: Iterable[Iterable[float]] | None) -> list[list[float]] | None:
    return None if rows is None else [[float(value) for value in row] for row in rows]
