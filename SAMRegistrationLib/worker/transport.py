"""What a session needs of the process that it talks to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Transport(Protocol):
    """The process of a worker; it can be started again after it has ended or was killed."""

    @property
    def is_running(self) -> bool: ...

    def start(
        self,
        on_output: Callable[[bytes], None],
        on_log: Callable[[str], None],
        on_exit: Callable[[int | None], None],
    ) -> None:
        """Start the process.

        Args:
            on_output: told what it writes to its standard output, in pieces of any length.
            on_log: told what it writes to its standard error, one or more lines at a time.
            on_exit: called once, after all output, with the exit status (negative: the signal) if it is known.

        Raises:
            OSError: if it cannot be started.
        """
        ...

    def write(self, data: bytes) -> None:
        """Hand bytes to the standard input.

        Raises:
            OSError: if the process is gone.
        """
        ...

    def close_input(self) -> None:
        """End the standard input; errors of a process that is gone already do not matter."""
        ...

    def kill(self) -> None:
        """End the process and all that it started, at once; nothing happens if it does not run."""
        ...
