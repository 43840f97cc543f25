"""The one request that a section of the panel has on its way, and what its label says when it fails."""

from collections.abc import Callable

from .Failures import adviceOn
from .Geometry import InputProblem
from .JobRunner import CANCELLED, INPUT


class SectionJob:
    """Starts requests, one at a time, and forgets them when they have ended.

    Args:
        logic: does the work.
        say: shows a text to the user.
        onFailed: told the message of whatever ended without a result, after it was shown.
        cancelled: what to say when a request was stopped; nothing by default.
    """

    def __init__(self, logic, say: Callable, onFailed: Callable = lambda _message: None, cancelled: str = "") -> None:
        self._logic, self._say, self._onFailed, self._cancelled = logic, say, onFailed, cancelled
        self._job, self._number = None, 0

    @property
    def running(self):
        """The request on its way, or None."""
        return self._job

    def start(self, request: Callable, onDone: Callable) -> None:
        """Start a request; bad input is told like every other failure.

        Args:
            request: given `onDone` and `onError`, starts it and gives its job.
            onDone: told what the request has found, unless it was abandoned.
        """
        self._number += 1
        number = self._number

        def finished(*found) -> None:
            if number == self._number:
                self._job = None
                onDone(*found)

        def failed(message: str, hint: "str | None", kind: str) -> None:
            if number == self._number:
                self._job = None
                self._tell(message, hint, kind)

        try:
            job = request(onDone=finished, onError=failed)
        except InputProblem as problem:
            failed(str(problem), None, INPUT)
            return
        # A worker that cannot be started has told so already.
        if not job.isDone:
            self._job = job

    def cancel(self) -> None:
        """Ask for the end of the request; it is on its way until the worker has stopped."""
        if self._job is not None:
            self._logic.cancel(self._job)

    def abandon(self) -> None:
        """Stop the request, and hear nothing of it any more."""
        self.cancel()
        self._job = None
        self._number += 1

    def _tell(self, message: str, hint: "str | None", kind: str) -> None:
        if kind == CANCELLED:
            if self._cancelled:
                self._say(self._cancelled)
        else:
            advice = adviceOn(message, hint, kind, self._logic.worker.log)
            self._say("\n".join(part for part in (message, advice) if part))
        self._onFailed(message)
