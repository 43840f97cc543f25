"""The requests that wait for the main thread, which can be taken back while they wait."""

from __future__ import annotations

import threading
from collections import deque

from .protocol import Message


class Inbox:
    """A queue between the thread that reads requests and the one that does the work."""

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, message: Message) -> None:
        """Add a request."""
        with self._changed:
            self._waiting.append(message)
            self._changed.notify()

    def take_back(self, request: int) -> bool:
        """Remove the request of that id; False if it does not wait (any more)."""
        with self._changed:
            for message in self._waiting:
                if message.get("id") == request:
                    self._waiting.remove(message)
                    return True
        return False

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._waiting.clear()
            self._closed = True
            self._changed.notify_all()

    def get(self) -> Message | None:
        """The next request, waiting for one; None once the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return None if self._closed else self._waiting.popleft()
