"""CUDA graphs: many small kernels recorded once and launched as a whole."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import torch


class Recorder:
    """Where a thread's graphs are recorded on a device: one stream and one memory for all of them, one at a time.

    A memory lasts as long as one of its graphs, so a small one is kept; memories of their own would pile up.
    """

    _kept = threading.local()

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        number = torch.zeros(1, device=device)
        self.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.stream):
            self._first = self.record(lambda: number.add_(1))
        self._number = number

    @classmethod
    def of(cls, device: torch.device) -> Recorder:
        """The one of this thread."""
        recorders = cls._recorders()
        if device not in recorders:
            recorders[device] = cls(device)
        return recorders[device]

    @classmethod
    def _recorders(cls) -> dict[torch.device, Recorder]:
        found: dict[torch.device, Recorder] = cls._kept.__dict__.setdefault("recorders", {})
        return found

    def record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        """What `work` launches on the stream, which must be the current one; None where it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        except RuntimeError:
            # Whatever a driver or a version of torch cannot record is launched one by one instead. A memory in
            # which recording was cut off may not be taken again.
            self._recorders().pop(self.stream.device, None)
            with contextlib.suppress(RuntimeError):
                self.stream.synchronize()
            return None
        return graph
