"""Real worker processes in fair and bad weather."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import PhantomPair, phantom_pair
from worker_hosts import MAIN, Answer, ScriptedHost, gone_within

from SAMRegistrationLib import read_transform, register, write_image
from SAMRegistrationLib.errors import Cancelled, InputError, RegistrationError, UsageError
from SAMRegistrationLib.worker.client import WorkerClient
from SAMRegistrationLib.worker.command import worker_command, worker_environment

PATIENCE_SECONDS = 15.0
"""More than a busy machine needs for what a free one answers within two seconds, and less than a hang takes."""

SLOW_WRITING = f"""
import time
from SAMRegistrationLib.worker import outputs

def write_report(report, path):
    path.write_text("half")
    PAUSE

outputs.write_report = write_report
{MAIN}
"""
PATIENT = SLOW_WRITING.replace("PAUSE", "\n    ".join(["for _ in range(6000):", "    time.sleep(0.01)"]))
HANGING = SLOW_WRITING.replace("PAUSE", "time.sleep(60)")

TALKATIVE = f"""
import os, threading, time
os.write(1, b"\\xff\\xfe rubbish\\n{{\\"reply\\": \\"result\\"}}\\n[1, 2]\\n" + b"x" * 100000 + b"\\n")

def talk():
    while True:
        os.write(1, b"a library says something")
        print("and something else")
        time.sleep(0.01)

from SAMRegistrationLib.worker import __main__ as worker
listen = worker.Worker.listen

def talking(self, parent):
    threading.Thread(target=talk, daemon=True).start()
    listen(self, parent)

worker.Worker.listen = talking
{MAIN}
"""


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(4.0)


@pytest.fixture(scope="module")
def files(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("volumes")
    for name in ("fixed", "moving"):
        write_image(getattr(pair, name), folder / f"{name}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in ("fixed", "moving")}


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerClient]:
    with WorkerClient(device="cpu", threads=1, grace_seconds=PATIENCE_SECONDS) as client:
        client.hello()
        yield client


def cheap(files: dict[str, str], output: Path) -> dict[str, Any]:
    """Parameters of a registration that takes no second once the worker is warm."""
    return {
        **files,
        "output": str(output),
        "preset": "message-passing",
        "model": "mind",
        "initial": np.eye(4).tolist(),
    }


def test_a_worker_registers_as_the_library_does(
    client: WorkerClient, pair: PhantomPair, files: dict[str, str], tmp_path: Path
) -> None:
    heard: list[tuple[str, float]] = []
    request = cheap(files, tmp_path / "job")
    result = client.register(**request, progress=lambda *told: heard.append(told))
    del request["output"]
    expected = register(**{**request, "initial": np.eye(4)})
    points = pair.inside(100)
    mapped = read_transform(result["transform"]).transform_points(points)  # type: ignore[attr-defined]
    np.testing.assert_allclose(mapped, expected.transform.transform_points(points), atol=0.05)
    assert result["report"]["inputs"]["fixed"]["path"] == files["fixed"]
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions) and {stage for stage, _ in heard} >= {
        "prepare",
        "message_passing",
        "write",
    }


@pytest.mark.slow
def test_another_preset_on_the_same_volumes_computes_no_embedding_anew(
    client: WorkerClient, files: dict[str, str], tmp_path: Path
) -> None:
    client.forget()
    counts = [
        client.register(**files, output=tmp_path / preset, preset=preset)["report"]["details"]["embeddings"]
        for preset in ("same-coarse", "message-passing")
    ]
    # Fixed, moving, and moving as it is aligned at first, which both presets do alike.
    assert [count["computed"] for count in counts] == [3, 0] and counts[1]["reused"] >= 3
    # Points are looked up in the aligned volume, which is embedded for the first of them.
    first = client.match(**files, points=[[0, 0, 0]])
    assert first["embeddings"] == {"computed": 1, "reused": 2}
    second = client.match(**files, points=[[5, 0, 0]])
    assert second["embeddings"]["computed"] == 0


@pytest.mark.slow
def test_a_query_to_a_warm_worker_costs_little_beside_its_work(
    client: WorkerClient, files: dict[str, str]
) -> None:
    points = np.random.default_rng(0).uniform(-20, 20, (10, 3)).tolist()
    client.match(**files, points=points)
    for query in (client.memory, lambda: client.match(**files, points=points)):
        overheads = []
        for _ in range(15):
            started = time.perf_counter()
            work = query()["seconds"]
            overheads.append(time.perf_counter() - started - work)
        assert np.median(overheads) < 0.5


def test_matched_points_are_those_of_the_library(
    client: WorkerClient, pair: PhantomPair, files: dict[str, str]
) -> None:
    points = pair.inside(40)
    found = client.match(**files, points=points)
    error = np.linalg.norm(np.array(found["matched"]) - pair.truth(points), axis=1)
    assert np.median(error) < 6
    assert len(found["score"]) == len(found["cycle_mm"]) == len(found["support"]) == 40
    assert np.array(found["affine"]).shape == (4, 4)


def test_the_worker_says_what_it_has(client: WorkerClient) -> None:
    said = client.hello()
    cpu = said["devices"][0]
    assert cpu["name"] == "cpu" and said["threads"] == 1 and said["process"] == client.process_id
    assert cpu["total_bytes"] > cpu["free_bytes"] > 0
    assert client.check_device("cpu")["works"]
    assert client.memory()["resident_mib"] > 100


@pytest.mark.parametrize(
    ("request_name", "changes", "error", "sentence"),
    [
        ("register", {"fixed": "nowhere.nrrd"}, InputError, "nowhere.nrrd"),
        ("register", {"preset": "best"}, UsageError, "unknown preset"),
        ("register", {"outputs": ["video"]}, UsageError, "no output 'video'"),
        ("register", {"output": f"{__file__}/job"}, InputError, "not a folder"),
        ("register", {"initial": [[1, 2], [3]]}, UsageError, "4x4 matrix"),
        ("register", {"seed": "one"}, UsageError, "seed must be"),
        ("evaluate", {"transform": "none.h5"}, InputError, "none.h5"),
        ("apply", {"transform": "none.h5"}, UsageError, "missing a required argument: 'input'"),
        ("dance", {}, UsageError, "unknown request 'dance'; there are apply"),
    ],
)
def test_mistakes_are_the_librarys_errors_and_the_worker_lives_on(
    client: WorkerClient,
    files: dict[str, str],
    tmp_path: Path,
    request_name: str,
    changes: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    process = client.process_id
    with pytest.raises(error, match=sentence):
        client._call(request_name, {**files, "output": str(tmp_path / "job"), **changes})
    assert not (tmp_path / "job").exists()
    assert client.hello()["process"] == process


STAGES = {
    "name": "stages",
    "summary": "One stage of each kind: matching, a search on features, and an optimization.",
    "features": "sam",
    "fallback": None,
    "spacing": 2.0,
    "stages": [{"method": "align"}, {"method": "message_passing"}, {"method": "sam_coarse", "stride": 8}],
}


@pytest.mark.parametrize("stage", ["prepare", "align", "message_passing", "sam_coarse", "finish"])
def test_a_cancellation_at_any_stage_is_answered_soon_and_leaves_nothing(
    client: WorkerClient, files: dict[str, str], tmp_path: Path, stage: str
) -> None:
    client.forget()
    process = client.process_id
    preset = tmp_path / "stages.json"
    preset.write_text(json.dumps(STAGES))
    stopped: list[float] = []

    def stop(at: str, _: float) -> None:
        if at == stage:
            stopped.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.register(**files, output=tmp_path / "job", preset=preset, progress=stop, outputs=["warped"])
    assert time.monotonic() - stopped[0] < PATIENCE_SECONDS
    assert list(tmp_path.iterdir()) == [preset]
    assert client.hello()["process"] == process, "a worker that answers keeps what it has loaded"


def test_a_call_can_be_cancelled_from_another_thread(
    client: WorkerClient, files: dict[str, str], tmp_path: Path
) -> None:
    threading.Timer(0.5, client.cancel).start()
    with pytest.raises(Cancelled):
        for _ in range(20):
            client.register(**files, output=tmp_path / "job", preset="samconvex")


def test_a_request_that_waits_can_be_cancelled(files: dict[str, str], tmp_path: Path) -> None:
    with ScriptedHost() as host:
        # While the worker still loads its libraries.
        number, answer = host.send("register", **cheap(files, tmp_path / "job"))
        host.session.cancel(number)
        assert host.wait_until(lambda: answer.complete) < PATIENCE_SECONDS
        assert answer.errors[0][2] == "cancelled" and not (tmp_path / "job").exists()
        assert host.ask("hello").results


def wait_for_writing(host: ScriptedHost, files: dict[str, str], folder: Path) -> tuple[int, Answer]:
    """Start a registration and wait until its outputs are being written."""
    number, answer = host.send("register", **cheap(files, folder))
    host.wait_until(lambda: list(folder.glob(".samreg-*/report.json")) if folder.exists() else False)
    return number, answer


def test_a_cancellation_while_files_are_written_leaves_none(files: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with ScriptedHost(PATIENT) as host:
        number, answer = wait_for_writing(host, files, folder)
        process = host.transport.process_id
        host.session.cancel(number)
        assert host.wait_until(lambda: answer.complete) < PATIENCE_SECONDS
        assert answer.errors[0][2] == "cancelled" and not folder.exists()
        assert host.ask("hello").results[0]["process"] == process


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_what_it_wrote_is_removed(files: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with ScriptedHost(HANGING, grace_seconds=1.0) as host:
        number, answer = wait_for_writing(host, files, folder)
        process = host.transport.process_id
        host.session.cancel(number)
        assert host.wait_until(lambda: answer.complete) < PATIENCE_SECONDS
        assert answer.errors == [("cancelled; nothing was written", None, "cancelled")]
        assert list(folder.iterdir()) == []
        assert process is not None and gone_within(process, 10)
        assert host.ask("hello").results[0]["process"] != process


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_told_and_replaced(files: dict[str, str], tmp_path: Path) -> None:
    with WorkerClient(device="cpu", threads=1) as client:

        def kill(stage: str, _: float) -> None:
            if stage == "align":
                assert client.process_id is not None
                os.kill(client.process_id, signal.SIGKILL)

        with pytest.raises(RegistrationError, match=r"stopped unexpectedly \(killed"):
            client.register(**cheap(files, tmp_path / "job"), progress=kill)
        assert not (tmp_path / "job").exists()
        client.register(**cheap(files, tmp_path / "job"))
        assert (tmp_path / "job" / "field.nrrd").is_file()


def test_rubbish_on_the_standard_output_harms_nothing(files: dict[str, str], tmp_path: Path) -> None:
    with ScriptedHost(TALKATIVE) as host:
        answer = host.ask("register", **cheap(files, tmp_path / "job"))
        assert answer.results and (tmp_path / "job" / "field.nrrd").is_file()
        log = "\n".join(host.session.log)
        assert "a library says something" in log and "and something else" in log


def test_a_process_that_is_no_worker_is_told() -> None:
    with ScriptedHost("print('I am no worker'); raise SystemExit(3)") as host:
        for _ in range(2):
            answer = host.ask("hello")
            sentence, hint, kind = answer.errors[0]
            assert kind == "worker-died" and "exit status 3" in sentence and "I am no worker" in str(hint)


def test_a_program_that_does_not_exist_is_told() -> None:
    client = WorkerClient(python="/no/such/python")
    with pytest.raises(RegistrationError, match="cannot be reached"):
        client.hello()


def test_packages_that_cannot_be_loaded_are_told_with_what_to_do() -> None:
    broken = "import sys; sys.modules['torch'] = None\n" + MAIN
    with ScriptedHost(broken) as host:
        sentence, hint, kind = host.ask("hello").errors[0]
        assert kind == "internal" and "cannot be loaded" in sentence and "torch" in str(hint)
        assert host.ask("hello").errors, "and it goes on answering"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits another process by prlimit")
def test_a_full_job_folder_is_told_and_left_clean_and_the_next_run_works(
    client: WorkerClient, files: dict[str, str], tmp_path: Path
) -> None:
    import resource

    assert client.process_id is not None
    before = resource.prlimit(client.process_id, resource.RLIMIT_FSIZE)
    resource.prlimit(client.process_id, resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            client.register(**cheap(files, tmp_path / "job"))
        assert list(tmp_path.iterdir()) == []
    finally:
        resource.prlimit(client.process_id, resource.RLIMIT_FSIZE, before)
    client.register(**cheap(files, tmp_path / "job"))
    assert (tmp_path / "job" / "transform.h5").is_file()


def started_worker(parent: int) -> subprocess.Popen[bytes]:
    command = [*worker_command(sys.executable, threads=1, parent=parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=worker_environment(os.environ), **pipes)  # type: ignore[call-overload]


def test_a_worker_ends_when_its_input_is_closed() -> None:
    with started_worker(os.getpid()) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        assert b"ready" in worker.stdout.readline()
        worker.stdin.close()
        assert worker.wait(5) == 0


def test_a_worker_ends_when_its_parent_is_gone_though_its_input_stays_open() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with started_worker(parent.pid) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        assert b"ready" in worker.stdout.readline()
        parent.communicate(b"\n")
        assert worker.wait(5) == 0


DYING_HOST = """
import os, sys
from SAMRegistrationLib.worker.client import WorkerClient
client = WorkerClient(device="cpu", threads=1)
def die(stage, fraction):
    if stage == "align":
        print(client.process_id, flush=True)
        os._exit(9)
client.register(sys.argv[1], sys.argv[2], output=sys.argv[3], preset="convexadam", progress=die)
"""


@pytest.mark.slow
def test_nothing_is_left_when_the_host_dies_in_the_middle_of_a_run(files: dict[str, str], tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", DYING_HOST, *files.values(), str(tmp_path / "job")]
    host = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert host.returncode == 9, host.stderr
    assert gone_within(int(host.stdout), 15)
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_the_process() -> None:
    client = WorkerClient(device="cpu", threads=1)
    process = client.hello()["process"]
    started = time.monotonic()
    client.close()
    client.close()
    assert gone_within(process, 10) and time.monotonic() - started < PATIENCE_SECONDS
    with pytest.raises(ProcessLookupError):
        os.killpg(process, 0)


def test_everything_that_a_worker_started_is_killed_with_it() -> None:
    script = (
        "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    with ScriptedHost(script, grace_seconds=0.2) as host:
        number, answer = host.send("hello")
        host.wait_until(lambda: host.session.log)
        child = int(host.session.log[0])
        host.session.cancel(number)
        host.wait_until(lambda: answer.complete)
        assert gone_within(child, 10)
