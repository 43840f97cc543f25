"""What a worker tells its host: whole lines, from any thread, and progress no oftener than anybody can look."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from .cancellation import uninterrupted
from .protocol import encode

_PROGRESS_SECONDS = 0.1
_ESTIMABLE_FRACTION = 0.02
_ESTIMABLE_SECONDS = 0.5


class Replies:
    """The way back to the host.

    Args:
        descriptor: of the file to write to.
        on_broken: called when the host does not listen any more.
    """

    def __init__(self, descriptor: int, on_broken: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_broken = on_broken
        self._lock = threading.Lock()

    @uninterrupted
    def send(self, reply: str, request: int | None = None, **content: Any) -> None:
        """Send one reply.

        Raises:
            ValueError, TypeError: if the content cannot be written as JSON.
        """
        line = encode({"id": request, "reply": reply, **content})
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self._on_broken()


class ProgressReporter:
    """Passes the progress of one request on to the host, and says how long it will still take.

    Args:
        replies: the way to the host.
        request: id of the request.
        check: called at every step; may raise to stop the work.
    """

    def __init__(self, replies: Replies, request: int, check: Callable[[], None]) -> None:
        self._replies = replies
        self._request = request
        self._check = check
        self._started = self._told_at = time.monotonic()
        self._stage = ""
        self._fraction = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Told the stage at work and the finished fraction of everything; it never goes back."""
        self._check()
        now = time.monotonic()
        self._fraction = max(self._fraction, min(fraction, 1.0))
        if stage == self._stage and now - self._told_at < _PROGRESS_SECONDS:
            return
        self._stage, self._told_at = stage, now
        self._replies.send(
            "progress",
            self._request,
            stage=stage,
            fraction=round(self._fraction, 4),
            seconds_left=self._seconds_left(now - self._started),
        )

    def _seconds_left(self, elapsed: float) -> float | None:
        if self._fraction < _ESTIMABLE_FRACTION or elapsed < _ESTIMABLE_SECONDS:
            return None
        return round(elapsed * (1 - self._fraction) / self._fraction, 1)
