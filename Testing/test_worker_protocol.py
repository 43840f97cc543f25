"""What host and worker say to each other, without a process: lines, sessions, commands, cancellation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAMRegistrationLib.errors import Cancelled
from SAMRegistrationLib.worker.cancellation import Cancellation, uninterrupted
from SAMRegistrationLib.worker.command import PACKAGE_FOLDER, worker_command, worker_environment
from SAMRegistrationLib.worker.inbox import Inbox
from SAMRegistrationLib.worker.protocol import LineReader, encode
from SAMRegistrationLib.worker.session import WorkerSession

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of log messages, which all must be."""
    assert all(message["reply"] == "log" for message in messages)
    return [message["text"] for message in messages]


@given(st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=3), max_size=4), st.integers(1, 40))
def test_messages_survive_the_way_in_pieces_of_any_length(contents: list[dict[str, Any]], piece: int) -> None:
    messages = [{**content, "id": n, "reply": "result"} for n, content in enumerate(contents)]
    data = b"".join(encode(message) for message in messages)
    assert data.isascii() and data.count(b"\n") == len(messages)
    reader = LineReader()
    received = [m for start in range(0, len(data), piece) for m in reader.feed(data[start : start + piece])]
    assert received == messages


@given(st.binary(max_size=200))
def test_rubbish_never_hides_the_message_after_it(rubbish: bytes) -> None:
    message = {"id": 1, "reply": "result", "result": {}}
    assert LineReader().feed(rubbish + b"\n" + encode(message))[-1] == message


@pytest.mark.parametrize(
    "line", [b"hello", b"[1, 2]", b'{"a": 1}', b"\xff\xfe", b"[" * 100_000, b"12", b'{"id": 1']
)
def test_whatever_is_no_message_goes_into_the_log(line: bytes) -> None:
    (text,) = texts(LineReader().feed(line + b"\r\n"))
    assert text.startswith(line[:2].decode(errors="backslashreplace")) and len(text) < 3000


def test_an_endless_line_is_not_kept() -> None:
    reader = LineReader(longest_line=1000)
    for _ in range(100):
        assert reader.feed(b"x" * 900) == []
    assert len(reader._rest) == 1000
    (text,) = texts(reader.feed(b"\n"))
    assert "90000 bytes" in text
    assert reader.feed(encode({"id": 1, "reply": "ready"})) == [{"id": 1, "reply": "ready"}]


def test_numbers_that_json_does_not_know_are_not_sent() -> None:
    with pytest.raises(ValueError):
        encode({"fraction": float("nan")})


def test_what_the_host_imports_is_the_standard_library_alone() -> None:
    modules = ["protocol", "session", "transport", "process_transport", "command", "client"]
    code = (
        "import sys; before = set(sys.modules)\n"
        f"for m in {modules}: __import__('SAMRegistrationLib.worker.' + m)\n"
        "tops = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(tops - sys.stdlib_module_names - {'SAMRegistrationLib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_names_the_parent_and_the_options() -> None:
    command = worker_command("python")
    assert command[:8] == [
        "python",
        "-u",
        "-X",
        "utf8",
        "-m",
        "SAMRegistrationLib.worker",
        "--parent",
        str(os.getpid()),
    ]
    assert worker_command("python", threads=2, cache_bytes=5)[8:] == ["--threads", "2", "--cache-bytes", "5"]


def test_the_environment_finds_the_library_and_loads_nothing_of_the_host() -> None:
    base = {
        "PYTHONPATH": os.pathsep.join(["/other", str(PACKAGE_FOLDER)]),
        "ITK_AUTOLOAD_PATH": "/itk",
        "HOME": "/h",
    }
    environment = worker_environment(base)
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(PACKAGE_FOLDER), "/other"]
    assert "ITK_AUTOLOAD_PATH" not in environment and environment["HOME"] == "/h"
    assert (PACKAGE_FOLDER / "SAMRegistrationLib" / "worker").is_dir()
    assert base["ITK_AUTOLOAD_PATH"] == "/itk", "the host's own environment stays as it is"


def test_waiting_threads_let_go_of_the_processor_unless_the_user_says_how_they_wait() -> None:
    assert worker_environment({})["GOMP_SPINCOUNT"] == "3000"
    assert worker_environment({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert "GOMP_SPINCOUNT" not in worker_environment({"OMP_WAIT_POLICY": "active"})


class FakeTransport:
    """A process that says what the test wants."""

    def __init__(self) -> None:
        self.is_running = False
        self.starts = self.kills = 0
        self.written: list[dict[str, Any]] = []
        self.input_closed = False
        self.broken = False

    def start(
        self,
        on_output: Callable[[bytes], None],
        on_log: Callable[[str], None],
        on_exit: Callable[[int | None], None],
    ) -> None:
        self.on_output, self.on_log, self.on_exit = on_output, on_log, on_exit
        self.is_running, self.input_closed = True, False
        self.starts += 1

    def write(self, data: bytes) -> None:
        if self.broken:
            raise BrokenPipeError("gone")
        self.written.append(json.loads(data))

    def close_input(self) -> None:
        self.input_closed = True

    def kill(self) -> None:
        self.is_running = False
        self.kills += 1

    def say(self, reply: str, number: int | None, **content: Any) -> None:
        self.on_output(encode({"id": number, "reply": reply, **content}))

    def die(self, status: int | None) -> None:
        self.is_running = False
        self.on_exit(status)


class Bench:
    """A session on a fake process with a clock that the test sets."""

    def __init__(self) -> None:
        self.transport, self.now = FakeTransport(), 0.0
        self.session = WorkerSession(self.transport, clock=lambda: self.now)
        self.events: list[tuple[Any, ...]] = []

    def send(self, request: str = "register", **parameters: Any) -> int:
        return self.session.send(
            request,
            parameters,
            on_progress=lambda *a: self.events.append(("progress", *a)),
            on_result=lambda result: self.events.append(("result", result)),
            on_error=lambda message, hint, kind: self.events.append(("error", kind, message, hint)),
        )

    def kinds(self) -> list[str]:
        """The kinds of the errors so far."""
        return [event[1] for event in self.events if event[0] == "error"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_request_starts_the_worker_and_later_ones_do_not(bench: Bench) -> None:
    first, second = bench.send(fixed="a"), bench.send("hello")
    assert bench.transport.starts == 1 and first != second
    assert bench.transport.written[0] == {"id": first, "request": "register", "parameters": {"fixed": "a"}}
    assert bench.session.pending == [first, second] and bench.session.busy


def test_answers_reach_their_callbacks(bench: Bench) -> None:
    number = bench.send()
    bench.transport.say("progress", number, stage="align", fraction=0.5, seconds_left=None)
    bench.transport.say("log", number, text="one\ntwo")
    bench.transport.on_log("three")
    bench.transport.say("result", number, result={"a": 1})
    assert bench.events == [("progress", "align", 0.5, None), ("result", {"a": 1})]
    assert bench.session.log == ["one", "two", "three"] and not bench.session.busy


def test_a_second_answer_to_a_request_goes_nowhere(bench: Bench) -> None:
    number = bench.send()
    bench.transport.say("error", number, message="no", hint="do", kind="input")
    bench.transport.say("result", number, result={})
    bench.transport.say("progress", number, stage="late", fraction=1)
    assert bench.events == [("error", "input", "no", "do")]


def test_a_worker_that_dies_is_reported_once_for_every_request_with_its_last_words(bench: Bench) -> None:
    bench.send()
    bench.send()
    bench.transport.on_log("the last word")
    on_exit = bench.transport.on_exit
    bench.transport.die(-9)
    on_exit(-9)
    bench.session.tick()
    assert bench.kinds() == ["worker-died", "worker-died"]
    assert "killed" in bench.events[0][2] and "the last word" in bench.events[0][3]


def test_after_a_death_the_next_request_starts_a_fresh_worker(bench: Bench) -> None:
    bench.send()
    old_output = bench.transport.on_output
    bench.transport.die(1)
    number = bench.send("hello")
    assert bench.transport.starts == 2
    old_output(encode({"id": number, "reply": "result", "result": {"from": "the dead"}}))
    assert bench.session.pending == [number]
    bench.transport.say("result", number, result={"from": "the living"})
    assert bench.events[-1] == ("result", {"from": "the living"})


def test_a_cancelled_request_ends_by_the_workers_answer(bench: Bench) -> None:
    number = bench.send()
    bench.session.cancel(number)
    bench.session.cancel(number)
    assert bench.transport.written[1:] == [{"request": "cancel", "id": number}]
    bench.transport.say("error", number, message="cancelled", hint=None, kind="cancelled")
    bench.now = 10
    bench.session.tick()
    assert bench.kinds() == ["cancelled"] and bench.transport.kills == 0


def test_a_worker_that_does_not_answer_a_cancellation_is_killed_after_the_grace(bench: Bench) -> None:
    other, number = bench.send(), bench.send()
    bench.session.cancel(number)
    bench.now = 1.9
    bench.session.tick()
    assert bench.transport.kills == 0 and bench.session.pending == [other, number]
    bench.now = 2.0
    bench.session.tick()
    assert bench.transport.kills == 1 and not bench.session.busy
    assert sorted(bench.kinds()) == ["cancelled", "worker-died"]
    bench.send()
    assert bench.transport.starts == 2


def test_a_worker_that_dies_of_a_cancellation_has_cancelled(bench: Bench) -> None:
    number = bench.send()
    bench.session.cancel(number)
    bench.transport.die(1)
    assert bench.kinds() == ["cancelled"]


def test_a_pipe_that_breaks_is_a_death(bench: Bench) -> None:
    bench.send("hello")
    bench.transport.broken = True
    bench.send("hello")
    assert bench.kinds() == ["worker-died", "worker-died"] and not bench.session.busy
    bench.transport.broken = False
    number = bench.send("hello")
    bench.transport.say("result", number, result={})
    assert bench.events[-1][0] == "result"


def test_closing_ends_requests_and_then_the_worker(bench: Bench) -> None:
    bench.send()
    bench.session.close()
    assert bench.kinds() == ["cancelled"]
    assert bench.transport.written[-1] == {"request": "shutdown"} and bench.transport.input_closed
    bench.now = 1.0
    bench.session.tick()
    assert bench.transport.kills == 0
    bench.now = 2.0
    bench.session.tick()
    assert bench.transport.kills == 1


def test_a_callback_that_fails_is_logged_and_the_next_message_arrives(bench: Bench) -> None:
    seen: list[dict[str, Any]] = []
    first = bench.session.send("hello", {}, on_result=lambda _: 1 / 0)
    second = bench.session.send("hello", {}, on_result=seen.append)
    lines = [encode({"id": n, "reply": "result", "result": {}}) for n in (first, second)]
    bench.transport.on_output(b"".join(lines))
    assert seen == [{}] and any("ZeroDivisionError" in line for line in bench.session.log)


@pytest.mark.parametrize(
    "message",
    [
        {"reply": "result", "id": [1]},
        {"reply": "result"},
        {"reply": "nonsense", "id": 1},
        {"request": "register", "id": 1},
    ],
)
def test_messages_that_mean_nothing_are_logged(bench: Bench, message: dict[str, Any]) -> None:
    number = bench.send()
    bench.transport.on_output(encode(message))
    assert bench.session.pending == [number] and "not understood" in bench.session.log[-1]


def test_a_result_that_is_none_still_ends_its_request(bench: Bench) -> None:
    number = bench.send()
    bench.transport.say("result", number, result=3)
    assert bench.kinds() == ["internal"] and not bench.session.busy


def test_the_log_is_bounded(bench: Bench) -> None:
    bench.send()
    bench.transport.on_log("\n".join(str(n) for n in range(2000)))
    assert len(bench.session.log) == 500 and bench.session.log[-1] == "1999"


def test_what_a_killed_worker_was_writing_is_removed_and_what_others_write_is_not(
    bench: Bench, tmp_path: Path
) -> None:
    bench.send(output=str(tmp_path))
    bench.transport.say("ready", None, process=4711)
    for name in (".samreg-4711-abc", ".samreg-4712-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.nrrd").write_text("half")
    bench.transport.die(-9)
    assert [path.name for path in tmp_path.iterdir()] == [".samreg-4712-abc"]


def test_a_waiting_request_can_be_taken_back() -> None:
    inbox = Inbox()
    inbox.put({"id": 1})
    inbox.put({"id": 2})
    assert inbox.take_back(1) and not inbox.take_back(1)
    assert inbox.get() == {"id": 2}
    inbox.close()
    assert inbox.get() is None


@pytest.fixture
def cancellation() -> Iterator[Cancellation]:
    before = signal.getsignal(signal.SIGINT)
    cancellation = Cancellation()
    cancellation.install()
    yield cancellation
    signal.signal(signal.SIGINT, before)


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.001)


def cancel_soon(cancellation: Cancellation, number: int) -> None:
    threading.Timer(0.1, cancellation.request, (number,)).start()


def test_work_that_never_looks_up_is_stopped_between_two_steps(cancellation: Cancellation) -> None:
    started = time.monotonic()
    cancel_soon(cancellation, 1)
    with pytest.raises(Cancelled), cancellation.of(1):
        busy(20)
    assert time.monotonic() - started < 10


def test_the_end_of_a_with_block_is_not_torn_apart(cancellation: Cancellation) -> None:
    class Slow:
        left = False

        def __enter__(self) -> Slow:
            return self

        def __exit__(self, *_: object) -> None:
            busy(0.4)
            self.left = True

    slow = Slow()
    cancel_soon(cancellation, 1)
    with pytest.raises(Cancelled), cancellation.of(1):
        with slow:
            pass
        busy(20)
    assert slow.left


def test_marked_functions_are_not_stopped(cancellation: Cancellation) -> None:
    finished = []

    @uninterrupted
    def whole() -> None:
        busy(0.4)
        finished.append(True)

    cancel_soon(cancellation, 1)
    with pytest.raises(Cancelled), cancellation.of(1):
        whole()
        busy(20)
    assert finished


def test_finished_work_is_not_stopped_any_more(cancellation: Cancellation) -> None:
    cancel_soon(cancellation, 1)
    with cancellation.of(1):
        cancellation.finalize()
        busy(0.4)
    cancellation.request(1)
    busy(0.1)


def test_the_cancellation_of_another_request_does_nothing(cancellation: Cancellation) -> None:
    cancel_soon(cancellation, 2)
    with cancellation.of(1):
        busy(0.3)
        cancellation.check()


def test_a_cancellation_is_noticed_where_progress_is_told(cancellation: Cancellation) -> None:
    with pytest.raises(Cancelled), cancellation.of(1):
        cancellation._requested = True
        cancellation.check()
