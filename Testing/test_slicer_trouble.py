"""What can go wrong between the module and its worker: no hang, no orphan, no half-written node, a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from headless_slicer.fixtures import MODULE_FOLDER, add_image, mrml
from phantoms import phantom_pair

__all__ = ["mrml"]

SETTINGS = {"preset": "affine", "model": "mind"}
PATIENCE_SECONDS = 60.0


@pytest.fixture
def volumes(mrml: Any) -> tuple[Any, Any]:
    pair = phantom_pair(spacing=6.0)
    return add_image(mrml, pair.fixed, "fixed"), add_image(mrml, pair.moving, "moving")


@pytest.fixture
def make_logic(mrml: Any) -> Iterator[Callable[..., Any]]:
    """Makes logics, and closes them at the end."""
    assert mrml.mrmlScene is not None
    from SAMRegistrationModule.RegistrationLogic import RegistrationLogic

    made = []

    def make(**options: Any) -> Any:
        made.append(RegistrationLogic(**options))
        return made[-1]

    yield make
    for logic in made:
        logic.close()


class Told:
    """Callbacks of a job that remember what they were told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.errors: list[tuple] = []
        self.done: list[tuple] = []

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "onProgress": lambda stage, *_: self.stages.append(stage),
            "onDone": lambda *result: self.done.append(result),
            "onError": lambda *error: self.errors.append(error),
        }


def wait(logic: Any, condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> None:
    """Poll until a condition holds; fail after a while instead of hanging."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it hangs"
        logic.worker.poll(0.02)


def scene_state(slicer: Any) -> list[tuple[str, int]]:
    """Every node with the time of its last change."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    return [(node.GetID(), node.GetMTime()) for node in nodes]


def transport_of(command: list[str]) -> Callable[[], Any]:
    """Makes workers of another command."""
    from SAMRegistrationModule.Worker import QueuedTransport

    from SAMRegistrationLib.worker.process_transport import ProcessTransport

    return lambda: QueuedTransport(ProcessTransport(command, os.environ))


@pytest.mark.slow
def test_cancelling_answers_soon_and_leaves_the_scene_as_it_was(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    logic, told = make_logic(), Told()
    logic.register(*volumes, **SETTINGS)
    before = scene_state(mrml)
    for stage in ("prepare", "align"):
        told = Told()
        job = logic.register(*volumes, preset="convexadam", model="mind", **told.callbacks())
        wait(logic, lambda told=told, stage=stage: stage in told.stages)
        started = time.monotonic()
        logic.cancel(job)
        wait(logic, lambda job=job: job.isDone)
        assert time.monotonic() - started < 15.0, "two seconds, and much for a busy machine"
        assert [error[2] for error in told.errors] == ["cancelled"] and not told.done
        assert scene_state(mrml) == before
        assert not list(logic.folders.folder.glob("job*"))
    assert logic.register(*volumes, **SETTINGS) is not None


@pytest.mark.slow
def test_a_killed_worker_is_told_and_replaced(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    logic, told = make_logic(), Told()
    before = scene_state(mrml)
    job = logic.register(*volumes, preset="convexadam", model="mind", **told.callbacks())
    wait(logic, lambda: "align" in told.stages)
    os.kill(logic.worker._transport.process_id, signal.SIGKILL)
    wait(logic, lambda: job.isDone)
    message, hint, kind = told.errors[0]
    assert kind == "worker-died" and "stopped unexpectedly" in message and "Try again" in hint
    assert scene_state(mrml) == before
    assert logic.register(*volumes, **SETTINGS) is not None


def test_rubbish_goes_into_the_log_and_its_end_is_told(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    rubbish = (
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 40 + b'{\"reply\": 7}\\n[]\\n'); sys.exit(5)"
    )
    logic, told = make_logic(makeTransport=transport_of([sys.executable, "-c", rubbish])), Told()
    before = scene_state(mrml)
    job = logic.register(*volumes, **SETTINGS, **told.callbacks())
    wait(logic, lambda: job.isDone)
    assert "exit status 5" in told.errors[0][0] and logic.worker.log
    assert scene_state(mrml) == before


def test_a_worker_that_only_talks_rubbish_can_be_cancelled(
    volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    endless = "import time\nwhile True: print('rubbish', flush=True); time.sleep(0.01)"
    logic, told = make_logic(makeTransport=transport_of([sys.executable, "-c", endless])), Told()
    job = logic.register(*volumes, **SETTINGS, **told.callbacks())
    wait(logic, lambda: len(logic.worker.log) > 5)
    process = psutil.Process(logic.worker._transport.process_id)
    logic.cancel(job)
    wait(logic, lambda: job.isDone, 10)
    assert told.errors[0][2] == "cancelled"
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_result_that_cannot_be_read_changes_nothing(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any], tmp_path: Path
) -> None:
    broken = tmp_path / "field.nrrd"
    broken.write_text("NRRD0004\nbut nothing else\n")
    answer = json.dumps({"reply": "result", "id": 1, "result": {"field": str(broken), "report": {}}})
    logic, told = (
        make_logic(makeTransport=transport_of([sys.executable, "-c", f"input(); print('''{answer}''')"])),
        Told(),
    )
    before = scene_state(mrml)
    job = logic.register(*volumes, **SETTINGS, outputs={"warped": True}, **told.callbacks())
    wait(logic, lambda: job.isDone)
    assert "field.nrrd cannot be read back" in told.errors[0][0]
    assert scene_state(mrml) == before


def test_a_worker_that_cannot_be_started_is_told(volumes: tuple[Any, Any], make_logic: Callable[..., Any]) -> None:
    from SAMRegistrationModule.JobRunner import RegistrationFailed

    logic = make_logic(makeTransport=transport_of(["/no/such/python"]))
    with pytest.raises(RegistrationFailed, match="cannot be reached"):
        logic.register(*volumes, **SETTINGS)


def test_a_full_folder_is_told_before_anything_starts(
    volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    resource = pytest.importorskip("resource")
    from SAMRegistrationModule.Geometry import InputProblem

    logic = make_logic()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InputProblem, match=r"cannot be written .* Free some space"):
            logic.register(*volumes, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(logic.folders.folder.iterdir())
    assert not logic.worker.isRunning


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process exist on POSIX systems only")
def test_a_worker_without_room_for_its_results_says_so(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    from SAMRegistrationModule.Worker import QueuedTransport

    from SAMRegistrationLib.worker.command import worker_command, worker_environment
    from SAMRegistrationLib.worker.process_transport import ProcessTransport

    command = worker_command(sys.executable)
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "worker", *command]
    logic = make_logic(
        makeTransport=lambda: QueuedTransport(ProcessTransport(limited, worker_environment(os.environ)))
    )
    told = Told()
    before = scene_state(mrml)
    job = logic.register(*volumes, **SETTINGS, outputs={"warped": True}, **told.callbacks())
    wait(logic, lambda: job.isDone)
    message, _, kind = told.errors[0]
    assert kind in ("input", "internal", "worker-died") and message
    assert "write" in message or "disk" in message or "too large" in message, message
    assert scene_state(mrml) == before


@pytest.mark.slow
def test_a_scene_that_is_closed_meanwhile_stays_closed(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    from headless_slicer.mrml import clear_scene

    logic, told = make_logic(), Told()
    job = logic.register(*volumes, **SETTINGS, **told.callbacks())
    wait(logic, lambda: told.stages)
    logic.forgetScene()
    clear_scene()
    before = scene_state(mrml)
    wait(logic, lambda: job.isDone)
    assert told.errors[0][2] == "cancelled" and not logic.canUndo
    assert scene_state(mrml) == before
    pair = phantom_pair(spacing=6.0)
    again = add_image(mrml, pair.fixed, "fixed"), add_image(mrml, pair.moving, "moving")
    assert logic.register(*again, **SETTINGS) is not None


@pytest.mark.slow
def test_volumes_that_are_deleted_meanwhile_get_no_result(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any]
) -> None:
    logic, told = make_logic(), Told()
    job = logic.register(*volumes, **SETTINGS, **told.callbacks())
    mrml.mrmlScene.RemoveNode(volumes[1])
    before = scene_state(mrml)
    wait(logic, lambda: job.isDone)
    assert "removed from the scene meanwhile" in told.errors[0][0]
    assert scene_state(mrml) == before


@pytest.mark.slow
def test_the_worker_ends_when_slicer_is_gone(tmp_path: Path) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed: nothing is tested on real MRML here")
    script = tmp_path / "host.py"
    script.write_text(
        f"""
import os, sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(MODULE_FOLDER)!r}]
from headless_slicer.mrml import start_mrml
from headless_slicer.fixtures import add_image
from phantoms import phantom_pair
slicer = start_mrml()
from SAMRegistrationModule.RegistrationLogic import RegistrationLogic
pair = phantom_pair(spacing=6.0)
logic = RegistrationLogic(folderRoot={str(tmp_path)!r})
stages = []
job = logic.register(add_image(slicer, pair.fixed, "f"), add_image(slicer, pair.moving, "m"), "convexadam",
                     model="mind", onProgress=lambda stage, *_: stages.append(stage))
while not stages:
    logic.worker.poll(0.05)
print(logic.worker._transport.process_id, flush=True)
os._exit(1)
"""
    )
    host = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    worker = int(host.stdout.split()[-1])
    until = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the worker outlives its host"
        time.sleep(0.1)


class InstantTransport:
    """Answers every registration at once with the same files, so that only the host's own work is seen."""

    def __init__(self, field: Path) -> None:
        self._field = field
        self.is_running = False

    def start(self, on_output: Any, _on_log: Any, _on_exit: Any) -> None:
        self._say, self.is_running = on_output, True

    def write(self, data: bytes) -> None:
        request = json.loads(data)
        if request["request"] != "register":
            return
        result = {"field": str(self._field), "report": {"preset": "instant"}}
        self._say(json.dumps({"reply": "result", "id": request["id"], "result": result}).encode() + b"\n")

    def close_input(self) -> None:
        self.is_running = False

    def kill(self) -> None:
        self.is_running = False

    def pump(self, seconds: float = 0.0) -> None:
        assert seconds >= 0


def test_two_hundred_registrations_do_not_grow_the_host(
    mrml: Any, volumes: tuple[Any, Any], make_logic: Callable[..., Any], tmp_path: Path
) -> None:
    import numpy as np
    from SAMRegistrationModule.Geometry import GridGeometry
    from SAMRegistrationModule.VolumeFiles import writeDisplacementFile

    geometry = GridGeometry((40, 40, 40), np.diag([4.0, 4.0, 4.0, 1.0]))
    field = writeDisplacementFile(tmp_path / "field.nrrd", np.ones((40, 40, 40, 3)), geometry)
    logic = make_logic(makeTransport=lambda: InstantTransport(field))
    node = logic.register(*volumes)
    report = mrml.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "report")
    process = psutil.Process()
    sizes = []
    for _ in range(4):
        for _ in range(50):
            logic.register(*volumes, outputs={"transform": node, "report": report})
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[0] < 20e6, sizes
    assert not list(logic.folders.folder.glob("job*"))
