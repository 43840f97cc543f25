"""What host and worker say to each other: one JSON object per line, ASCII, both ways.

Requests: `{"id": int, "request": NAME, "parameters": {...}}`, and without an answer of their own
`{"request": "cancel", "id": int}` and `{"request": "shutdown"}`. Replies carry the id of their request (or null):

- `ready`: the worker can compute; `version`, `process` (its id).
- `progress`: `stage`, `fraction` (0 to 1 of everything), `seconds_left` (or null).
- `log`: `text`.
- `result`: `result`, an object, always with `seconds` (of the work itself) and `warnings`; the last reply.
- `error`: `message` (one clear sentence), `hint` (what to do, or null), `kind`; also the last reply.

Arrays go through files, whose paths are in the parameters and results. World positions are LPS mm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]

LONGEST_LINE = 16 * 2**20
"""Bytes; whatever is longer is no message."""

LONGEST_LOG = 2000
"""Characters of a line that is no message and goes into the log."""

INPUT, USAGE, MEMORY, CANCELLED = "input", "usage", "memory", "cancelled"
INTERNAL, WORKER_DIED = "internal", "worker-died"
"""The kinds of errors."""


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as a line.

    Raises:
        ValueError: if it holds a number that is not finite.
        TypeError: if it holds anything that JSON does not know.
    """
    return json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def log_message(text: str) -> Message:
    """A line that is no message, as one."""
    if len(text) > LONGEST_LOG:
        text = f"{text[:LONGEST_LOG]} ... ({len(text)} characters)"
    return {"reply": "log", "id": None, "text": text}


class LineReader:
    """Cuts a stream of bytes into messages; whatever is no message becomes a log message.

    Args:
        longest_line: bytes at most; the rest of a longer line is thrown away as it comes.
    """

    def __init__(self, longest_line: int = LONGEST_LINE) -> None:
        self._longest_line = longest_line
        self._rest = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with these bytes."""
        messages = []
        *complete, rest = data.split(b"\n")
        for line in complete:
            self._append(line)
            messages.extend(self._finished_line())
        self._append(rest)
        return messages

    def _append(self, piece: bytes) -> None:
        room = self._longest_line - len(self._rest)
        self._rest += piece[:room]
        self._dropped += max(0, len(piece) - room)

    def _finished_line(self) -> list[Message]:
        line, dropped = bytes(self._rest), self._dropped
        self._rest.clear()
        self._dropped = 0
        if dropped:
            return [log_message(f"a line of {len(line) + dropped} bytes was thrown away: {_as_text(line[:80])}")]
        return [_message(line)] if line.strip() else []


def _message(line: bytes) -> Message:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return log_message(_as_text(line))
    if isinstance(content, dict) and ("reply" in content or "request" in content):
        return content
    return log_message(_as_text(line))


def _as_text(line: bytes) -> str:
    return line.decode("utf-8", errors="backslashreplace").rstrip("\r")
