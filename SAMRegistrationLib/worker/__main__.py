"""The worker: `python -m SAMRegistrationLib.worker --parent PID`, with requests on its standard input."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from .. import __version__
from .cancellation import MESSAGE, Cancellation
from .dispatch import Dispatcher, Handler
from .inbox import Inbox
from .parent import WatchedProcess
from .protocol import CANCELLED, INTERNAL, LineReader, Message
from .replies import Replies

REPAIR_HINT = "Install torch, SimpleITK, numpy and safetensors anew; the log says what is wrong."
_PIECE = 1 << 16
_WATCH_SECONDS = 1.0
_LAST_SECONDS = 1.5
"""So long may work that is stopped take away what it has half written, before the process ends anyway."""


class Worker:
    """The threads of the process: one reads requests, one watches the parent, the main one works.

    Args:
        requests: file descriptor to read requests from.
        replies: file descriptor to write replies to.
    """

    def __init__(self, requests: int, replies: int) -> None:
        self._requests = requests
        self.replies = Replies(replies, self._host_is_gone)
        self._inbox = Inbox()
        self._cancellation = Cancellation()
        self._idle = threading.Event()

    def listen(self, parent: int | None) -> None:
        """Start to read requests and to watch the parent; to be called in the main thread."""
        self._cancellation.install()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        if parent is not None:
            threading.Thread(target=self._watch, args=(parent,), name="watch", daemon=True).start()

    def work(self, handlers: dict[str, Handler], after_each: Callable[[], None]) -> None:
        """Serve requests until the end, and do something after each has been answered."""
        dispatcher = Dispatcher(handlers, self.replies, self._cancellation)
        while (message := self._inbox.get()) is not None:
            dispatcher.serve(message)
            after_each()
        self._idle.set()

    def refuse(self, sentence: str) -> None:
        """Answer every request with the same error until the end."""
        while (message := self._inbox.get()) is not None:
            self.replies.send("error", message["id"], message=sentence, hint=REPAIR_HINT, kind=INTERNAL)
        self._idle.set()

    def end(self) -> None:
        """Stop the work and end the process, from any thread but the main one at work."""
        self._inbox.close()
        self._cancellation.request()
        self._idle.wait(_LAST_SECONDS)
        os._exit(0)

    def _host_is_gone(self) -> None:
        # The main thread may be the one that found out; it must stay free to take away what it has half written.
        threading.Thread(target=self.end, name="end", daemon=True).start()

    def _read(self) -> None:
        reader = LineReader()
        while data := os.read(self._requests, _PIECE):
            for message in reader.feed(data):
                self._receive(message)
        self.end()

    def _watch(self, parent: int) -> None:
        watched = WatchedProcess(parent)
        while watched.is_running:
            time.sleep(_WATCH_SECONDS)
        self.end()

    def _receive(self, message: Message) -> None:
        name, number = message.get("request"), message.get("id")
        if name == "shutdown":
            self.end()
        elif not isinstance(number, int):
            self.replies.send("log", text=f"not a request: {message.get('text', message)}")
        elif name != "cancel":
            self._inbox.put(message)
        elif self._inbox.take_back(number):
            self.replies.send("error", number, message=MESSAGE, hint=None, kind=CANCELLED)
        else:
            self._cancellation.request(number)


def take_over_standard_streams() -> tuple[int, int]:
    """Keep the standard input and output for the protocol alone; whatever libraries print goes to the log.

    Returns:
        The descriptors to read requests from and to write replies to.
    """
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return requests, replies


def main(arguments: Sequence[str] | None = None) -> int:
    """Be a worker until the host closes the standard input, asks for the end, or is gone."""
    parser = argparse.ArgumentParser(prog="SAMRegistrationLib.worker")
    parser.add_argument("--parent", type=int, help="process that the worker does not outlive")
    parser.add_argument("--threads", type=int, help="CPU threads of the computation")
    parser.add_argument("--cache-bytes", type=int, help="memory for embeddings on each device")
    options = parser.parse_args(arguments)
    worker = Worker(*take_over_standard_streams())
    # Listening comes first: a cancellation or the end need not wait until torch is loaded.
    worker.listen(options.parent)
    try:
        from ..memory_reuse import give_back
        from .jobs import Jobs
    except (ImportError, OSError, RuntimeError) as error:
        # Half installs of torch fail in all of these ways.
        traceback.print_exc()
        worker.refuse(f"the packages that the registration needs cannot be loaded: {error}")
        return 0
    jobs = Jobs(threads=options.threads, cache_bytes=options.cache_bytes)
    worker.replies.send("ready", version=__version__, process=os.getpid())
    worker.work(jobs.handlers, give_back)
    return 0


if __name__ == "__main__":
    sys.exit(main())
