"""Stopping the work of the main thread from another one, between any two steps of Python.

The work is interrupted as Ctrl+C interrupts the command line: wherever it is, `Cancelled` is raised in the main
thread as soon as the library's call into native code returns. So nothing has to be sprinkled over the methods, and
no stage can be forgotten. A few places must not be torn apart: imports, the beginnings and ends of `with` blocks
(where outputs appear or are taken back), and functions marked as `uninterrupted`.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, NoReturn, TypeVar

from ..errors import Cancelled

Function = TypeVar("Function", bound=Callable[..., Any])

MESSAGE = "cancelled; nothing was written"
_RETRY_SECONDS = 0.02
_AGAIN_SECONDS = 0.5
"""An interruption that was swallowed (in a destructor, say) is raised again after this time."""

_uninterrupted: set[CodeType] = set()


def uninterrupted(function: Function) -> Function:
    """Mark a short function in which the work is not stopped."""
    _uninterrupted.add(function.__code__)
    return function


class Cancellation:
    """Which request is at work in the main thread, and whether it is to be stopped."""

    def __init__(self) -> None:
        self._current: int | None = None
        self._requested = False
        self._final = False
        self._not_before = 0.0

    def install(self) -> None:
        """Make the interruption possible; to be called once, in the main thread."""
        signal.signal(signal.SIGINT, self._interrupt)

    @contextlib.contextmanager
    def of(self, request: int) -> Iterator[None]:
        """The block is the work for a request and may be stopped by `Cancelled`."""
        self._requested = self._final = False
        self._not_before = 0.0
        self._current = request
        try:
            yield
        finally:
            self._current = None

    def request(self, request: int | None = None) -> None:
        """Stop the work if it is that of a request (whatever it is by default); from any other thread."""
        current = self._current
        if current is not None and request in (None, current) and not self._requested:
            self._requested = True
            threading.Thread(target=self._insist, args=(current,), name="cancellation", daemon=True).start()

    def check(self) -> None:
        """Stop here if that is wanted.

        Raises:
            Cancelled: if the request is to be stopped.
        """
        if self._requested and not self._final:
            self._raise()

    def finalize(self) -> None:
        """From here on the work is finished and cannot be stopped any more.

        Raises:
            Cancelled: if it is to be stopped already.
        """
        self.check()
        self._final = True

    def _insist(self, request: int) -> None:
        while self._current == request and not self._final:
            _thread.interrupt_main(signal.SIGINT)
            time.sleep(_RETRY_SECONDS)

    def _interrupt(self, _: int, frame: FrameType | None) -> None:
        wanted = self._current is not None and self._requested and not self._final
        if wanted and time.monotonic() >= self._not_before and not _is_delicate(frame):
            self._raise()

    def _raise(self) -> NoReturn:
        self._not_before = time.monotonic() + _AGAIN_SECONDS
        raise Cancelled(MESSAGE)


def _is_delicate(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        managing = code.co_name in ("__enter__", "__exit__")
        if managing or code in _uninterrupted or code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
