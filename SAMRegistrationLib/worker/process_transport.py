"""A worker as a child process with pipes, for hosts without an event loop of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

_PIECE = 1 << 16
_LAST_OUTPUT_SECONDS = 1.0
"""So long is waited for the pipes of a process that has ended; a child of it may keep them open."""

_KILL_SECONDS = 5.0


class ProcessTransport:
    """Starts a command in a process group of its own, so that all of it can be killed.

    The callbacks come from threads of this object, never two at a time for the same stream.

    Args:
        command: what to start.
        environment: its variables.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._write_lock = threading.Lock()

    @property
    def process_id(self) -> int | None:
        """Of the process that was started last."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(
        self,
        on_output: Callable[[bytes], None],
        on_log: Callable[[str], None],
        on_exit: Callable[[int | None], None],
    ) -> None:
        """Start the command and read what it says; see `Transport`."""
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **_own_group(),
        )
        self._process = process
        assert process.stdout is not None and process.stderr is not None
        readers = [
            _started(_read, process.stdout, on_output),
            _started(_read_lines, process.stderr, on_log),
        ]
        _started(_await_end, process, readers, on_exit)

    def write(self, data: bytes) -> None:
        """Hand bytes to the standard input; see `Transport`."""
        if self._process is None or self._process.stdin is None:
            raise BrokenPipeError("the process was not started")
        with self._write_lock:
            try:
                self._process.stdin.write(data)
                self._process.stdin.flush()
            except ValueError as error:
                raise BrokenPipeError("the standard input was closed") from error

    def close_input(self) -> None:
        """End the standard input; see `Transport`."""
        if self._process is not None and self._process.stdin is not None:
            with self._write_lock, contextlib.suppress(OSError):
                self._process.stdin.close()

    def kill(self) -> None:
        """End the process and its children; see `Transport`."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_SECONDS)


def _own_group() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _started(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name=f"worker{target.__name__}", daemon=True)
    thread.start()
    return thread


def _read(stream: IO[bytes], on_output: Callable[[bytes], None]) -> None:
    # Pieces as they come: a buffered read would wait until it has them all.
    while piece := os.read(stream.fileno(), _PIECE):
        on_output(piece)


def _read_lines(stream: IO[bytes], on_log: Callable[[str], None]) -> None:
    for line in stream:
        on_log(line.decode("utf-8", errors="backslashreplace").rstrip("\r\n"))


def _await_end(
    process: subprocess.Popen[bytes], readers: list[threading.Thread], on_exit: Callable[[int | None], None]
) -> None:
    status = process.wait()
    for reader in readers:
        reader.join(_LAST_OUTPUT_SECONDS)
    on_exit(status)
