"""A conversation with a worker, however its process is started: requests out, answers back to callbacks.

Every request ends exactly once, with its result or with an error: also if the worker dies, hangs after a
cancellation, or prints rubbish. Callbacks run in whatever thread calls `feed`, `tick`, `send` or `close`, and in
those of the transport; an exception in one is logged and harms nobody else.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import remove_staging
from .protocol import CANCELLED, INTERNAL, WORKER_DIED, LineReader, Message, encode
from .transport import Transport

__all__ = ["OnError", "OnProgress", "OnResult", "Transport", "WorkerSession"]

OnProgress = Callable[[str, float, float | None], None]
"""Told the stage, the finished fraction of everything and the seconds left, if they can be told."""

OnResult = Callable[[dict[str, Any]], None]
OnError = Callable[[str, str | None, str], None]
"""Told one clear sentence, what to do about it (or None), and the kind of the error."""

LOG_LINES = 500
_LAST_WORDS = 8
_UNANSWERED = "the cancelled work did not stop in time, so its worker was stopped"


@dataclass
class _Pending:
    on_progress: OnProgress | None
    on_result: OnResult | None
    on_error: OnError | None
    output: str | None
    answer_until: float | None = field(default=None)


class WorkerSession:
    """Requests to one worker, which is started when it is needed.

    Args:
        transport: the process.
        on_log: told every line that the worker logs.
        grace_seconds: how long the worker has to answer a cancellation or to shut down before it is killed.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        on_log: Callable[[str], None] | None = None,
        grace_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._on_log = on_log
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._reader = LineReader()
        # Counts the processes, so that late words of an earlier one are not taken for the present one's.
        self._process = 0
        self._process_id: int | None = None
        self._started = False
        self._closed_until: float | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._pending)

    @property
    def pending(self) -> list[int]:
        """Ids of the requests without an answer, oldest first."""
        with self._lock:
            return list(self._pending)

    @property
    def log(self) -> list[str]:
        """The last lines that the worker logged."""
        with self._lock:
            return list(self._log)

    def send(
        self,
        request: str,
        parameters: Mapping[str, Any],
        *,
        on_progress: OnProgress | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
    ) -> int:
        """Send a request; starts the worker if it is not running. What goes wrong is told to `on_error`.

        Returns:
            The id of the request.

        Raises:
            TypeError, ValueError: if the parameters cannot be written as JSON.
        """
        with self._lock:
            number = self._last_id + 1
            line = encode({"id": number, "request": request, "parameters": dict(parameters)})
            self._last_id = number
            output = parameters.get("output")
            self._pending[number] = _Pending(
                on_progress, on_result, on_error, output if isinstance(output, str) else None
            )
        try:
            self._start_if_needed()
            self._transport.write(line)
        except OSError as error:
            self._abandon(f"the registration worker cannot be reached: {error}")
        return number

    def cancel(self, number: int) -> None:
        """Ask the worker to stop a request, which then ends with an error of the kind "cancelled".

        If the worker does not answer in time, `tick` kills it; the next request starts a fresh one.
        """
        with self._lock:
            request = self._pending.get(number)
            if request is None or request.answer_until is not None:
                return
            request.answer_until = self._clock() + self._grace_seconds
        try:
            self._transport.write(encode({"request": "cancel", "id": number}))
        except OSError as error:
            self._abandon(f"the registration worker cannot be reached: {error}")

    def tick(self) -> None:
        """Look at the clock; to be called about every 100 ms."""
        now = self._clock()
        with self._lock:
            late = [n for n, r in self._pending.items() if r.answer_until is not None and now >= r.answer_until]
            closing = self._closed_until is not None and now >= self._closed_until
        if late:
            self._abandon(_UNANSWERED)
        elif closing and self._transport.is_running:
            self._abandon("the registration worker was closed")

    def close(self) -> None:
        """Ask the worker to end; `tick` kills it if it does not. Requests without an answer end as cancelled."""
        with self._lock:
            unanswered = self._taken()
            running = self._started and self._transport.is_running
            self._closed_until = self._clock() + self._grace_seconds if running else None
        if running:
            try:
                self._transport.write(encode({"request": "shutdown"}))
                self._transport.close_input()
            except OSError as error:
                self._record(f"the worker was gone already: {error}")
        self._fail(unanswered, "the registration worker was closed", None, CANCELLED)

    def feed(self, data: bytes) -> None:
        """Take what the worker wrote to its standard output."""
        with self._lock:
            messages = self._reader.feed(data)
        for message in messages:
            self._take(message)

    def _start_if_needed(self) -> None:
        with self._lock:
            if self._started and self._closed_until is None and self._transport.is_running:
                return
            if self._transport.is_running:
                self._transport.kill()
            self._process += 1
            process = self._process
            self._reader, self._process_id, self._closed_until = LineReader(), None, None
            self._started = True

        def current(function: Callable[[Any], None]) -> Callable[[Any], None]:
            return lambda value: function(value) if process == self._process else None

        self._transport.start(current(self.feed), self._record, current(self._exited))

    def _take(self, message: Message) -> None:
        kind = message.get("reply")
        if kind == "log":
            self._record(str(message.get("text", "")))
        elif kind == "ready":
            self._process_id = message.get("process")
        elif not self._answered(kind, message):
            self._record(f"not understood: {message}")

    def _answered(self, kind: Any, message: Message) -> bool:
        """Pass an answer on; False if it is none. Late answers to requests that have ended go nowhere."""
        number = message.get("id")
        if kind not in ("progress", "result", "error") or not isinstance(number, int):
            return False
        with self._lock:
            request = self._pending.get(number) if kind == "progress" else self._pending.pop(number, None)
        if request is None:
            return True
        if kind == "progress":
            arguments = (message.get("stage"), message.get("fraction"), message.get("seconds_left"))
            self._call(request.on_progress, *arguments)
        elif kind == "result" and isinstance(message.get("result"), dict):
            self._call(request.on_result, message["result"])
        else:
            text = str(message.get("message", "the registration worker gave an answer that is none"))
            self._call(request.on_error, text, message.get("hint"), str(message.get("kind", INTERNAL)))
        return True

    def _exited(self, status: int | None) -> None:
        with self._lock:
            unanswered = self._taken()
            self._started = False
        reason = "" if status is None else f" ({_told(status)})"
        self._end(unanswered, f"the registration worker stopped unexpectedly{reason}")

    def _abandon(self, reason: str) -> None:
        """Kill the worker, and hear no more of it."""
        with self._lock:
            unanswered = self._taken()
            self._process += 1
            self._started, self._closed_until = False, None
        self._transport.kill()
        self._end(unanswered, reason)

    def _end(self, requests: list[_Pending], reason: str) -> None:
        """The end of requests whose worker is gone: as cancelled where that was wanted, else by its death."""
        self._remove_leftovers(requests)
        cancelled = [request for request in requests if request.answer_until is not None]
        self._fail(cancelled, "cancelled; nothing was written", None, CANCELLED)
        self._fail([request for request in requests if request not in cancelled], reason, *self._death())

    def _death(self) -> tuple[str, str]:
        """Hint and kind of the error that a dead worker leaves."""
        last_words = "\n".join(self.log[-_LAST_WORDS:])
        return f"Try again: a new worker is started. Its last words:\n{last_words}".rstrip(), WORKER_DIED

    def _taken(self) -> list[_Pending]:
        """All requests without an answer, which are thereby no longer waiting for one."""
        unanswered = list(self._pending.values())
        self._pending.clear()
        return unanswered

    def _remove_leftovers(self, requests: Iterable[_Pending]) -> None:
        """What a killed worker was writing, which it could not take away itself."""
        if self._process_id is not None:
            for output in {request.output for request in requests if request.output}:
                for folder in (Path(output), Path(output).parent):
                    remove_staging(folder, self._process_id)

    def _fail(self, requests: Iterable[_Pending], message: str, hint: str | None, kind: str) -> None:
        for request in requests:
            self._call(request.on_error, message, hint, kind)

    def _record(self, text: str) -> None:
        lines = text.splitlines()
        with self._lock:
            self._log.extend(lines)
        for line in lines:
            self._call(self._on_log, line)

    def _call(self, callback: Callable[..., None] | None, *arguments: Any) -> None:
        if callback is None:
            return
        try:
            callback(*arguments)
        except Exception:
            with self._lock:
                self._log.extend(traceback.format_exc().splitlines())


def _told(status: int) -> str:
    if status in (-9, 137):
        return "killed, as happens when memory runs out"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
