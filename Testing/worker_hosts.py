"""Hosts of real workers for tests: ordinary ones, and ones whose worker misbehaves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from SAMRegistrationLib.worker.command import worker_environment
from SAMRegistrationLib.worker.parent import WatchedProcess
from SAMRegistrationLib.worker.process_transport import ProcessTransport
from SAMRegistrationLib.worker.session import WorkerSession

MAIN = "from SAMRegistrationLib.worker.__main__ import main; main(['--threads', '1'])"


@dataclass
class Answer:
    """What came back for one request."""

    progress: list[tuple[str, float]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[tuple[str, str | None, str]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.results or self.errors)


class ScriptedHost:
    """A session with a worker whose process runs some lines of Python before, or instead of, the worker's own."""

    def __init__(self, script: str = MAIN, grace_seconds: float = 10.0) -> None:
        self.transport = ProcessTransport([sys.executable, "-u", "-c", script], worker_environment(os.environ))
        self.session = WorkerSession(self.transport, grace_seconds=grace_seconds)

    def __enter__(self) -> ScriptedHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.kill()

    def send(self, request: str, **parameters: Any) -> tuple[int, Answer]:
        """Send a request and return its id and where its answers appear."""
        answer = Answer()
        number = self.session.send(
            request,
            parameters,
            on_progress=lambda stage, fraction, _: answer.progress.append((stage, fraction)),
            on_result=answer.results.append,
            on_error=lambda *error: answer.errors.append(error),
        )
        return number, answer

    def ask(self, request: str, **parameters: Any) -> Answer:
        """Send a request and wait for its end."""
        _, answer = self.send(request, **parameters)
        self.wait_until(lambda: answer.complete)
        return answer

    def wait_until(self, condition: Callable[[], object], seconds: float = 60.0) -> float:
        """Keep the clock of the session going until something is true; the seconds it took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, self.session.log
            self.session.tick()
            time.sleep(0.02)
        return time.monotonic() - started


def gone_within(process: int, seconds: float) -> bool:
    """Whether a process ends within so many seconds."""
    watched, until = WatchedProcess(process), time.monotonic() + seconds
    while watched.is_running:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
