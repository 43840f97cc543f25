"""From a request to the function that serves it, and from what goes wrong to a sentence for the user."""

from __future__ import annotations

import inspect
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..errors import (
    Cancelled,
    InputError,
    NotEnoughMemoryError,
    RegistrationError,
    RegistrationWarning,
    UsageError,
    is_out_of_memory,
)
from .cancellation import Cancellation
from .protocol import CANCELLED, INPUT, INTERNAL, MEMORY, USAGE
from .replies import ProgressReporter, Replies

MEMORY_HINT = "Crop the volumes, choose a lighter preset, empty the worker's memory or compute on the CPU."
INTERNAL_HINT = "This is a fault of the program: please report it with the log."


@dataclass(frozen=True)
class Task:
    """What the function that serves a request can tell its host.

    Args:
        progress: told the stage and the finished fraction of everything; raises `Cancelled` where that is wanted.
        finalize: called when the outputs are complete, after which it is too late to cancel.
        log: a line for the host's log.
    """

    progress: Callable[[str, float], None]
    finalize: Callable[[], None]
    log: Callable[[str], None]


Handler = Callable[..., dict[str, Any]]
"""Takes a `Task` and the parameters of its request by keyword, annotated with plain types."""


class Dispatcher:
    """Serves requests one after the other.

    Args:
        handlers: the functions by the name of the request.
        replies: the way to the host.
        cancellation: which stops a function at work.
    """

    def __init__(self, handlers: Mapping[str, Handler], replies: Replies, cancellation: Cancellation) -> None:
        self._handlers = handlers
        self._replies = replies
        self._cancellation = cancellation

    def serve(self, message: Mapping[str, Any]) -> None:
        """Do what a request wants and send its last reply."""
        request = int(message["id"])
        try:
            started = time.perf_counter()
            with self._cancellation.of(request):
                result = self._result(request, message)
            self._replies.send("result", request, result={**result, "seconds": time.perf_counter() - started})
        except Exception as error:
            if not isinstance(error, RegistrationError):
                traceback.print_exc()
            sentence, hint, kind = told(error)
            self._replies.send("error", request, message=sentence, hint=hint, kind=kind)

    def _result(self, request: int, message: Mapping[str, Any]) -> dict[str, Any]:
        name = message.get("request")
        if not isinstance(name, str) or name not in self._handlers:
            raise UsageError(f"unknown request {name!r}; there are {', '.join(sorted(self._handlers))}")
        handler = self._handlers[name]
        arguments = checked_arguments(name, handler, message.get("parameters", {}))
        task = Task(
            ProgressReporter(self._replies, request, self._cancellation.check),
            self._cancellation.finalize,
            lambda text: self._replies.send("log", request, text=text),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RegistrationWarning)
            result = handler(task, **arguments)
        sentences = [str(w.message) for w in caught if issubclass(w.category, RegistrationWarning)]
        for other in caught:
            if not issubclass(other.category, RegistrationWarning):
                print(f"{other.category.__name__}: {other.message}", file=sys.stderr)
        return {**result, "warnings": [*result.get("warnings", []), *dict.fromkeys(sentences)]}


def checked_arguments(name: str, handler: Handler, parameters: Any) -> dict[str, Any]:
    """The parameters of a request, if they are what the function takes.

    Raises:
        UsageError: if one is missing, unknown or of another type.
    """
    if not isinstance(parameters, dict):
        raise UsageError(f'the parameters of the request "{name}" must be an object')
    try:
        inspect.signature(handler).bind(None, **parameters)
    except TypeError as error:
        raise UsageError(f'the request "{name}": {error}') from error
    types = get_type_hints(handler)
    for parameter, value in parameters.items():
        if not isinstance(value, types[parameter]):
            raise UsageError(f'the request "{name}": {parameter} must be {types[parameter]}, not {value!r}')
    return parameters


def told(error: Exception) -> tuple[str, str | None, str]:
    """The sentence, the hint and the kind of an error."""
    if isinstance(error, Cancelled):
        return str(error), None, CANCELLED
    if isinstance(error, UsageError):
        return str(error), None, USAGE
    if isinstance(error, NotEnoughMemoryError):
        return str(error), MEMORY_HINT, MEMORY
    if isinstance(error, InputError):
        return str(error), None, INPUT
    if is_out_of_memory(error):
        return "memory ran out", MEMORY_HINT, MEMORY
    if isinstance(error, RegistrationError):
        return str(error), INTERNAL_HINT, INTERNAL
    lines = str(error).strip().splitlines() or ["no more is known"]
    return f"an unexpected error, {type(error).__name__}: {lines[0]}", INTERNAL_HINT, INTERNAL
