"""The one request of a section of the panel: how it ends, and what is told of it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
from headless_slicer.panel_fixtures import slicer

pytest.importorskip("slicer", reason="slicer-core is not installed: the panel is not tested here")

__all__ = ["slicer"]


class Section:
    """A label, a logic that notes what is cancelled, and requests that end when the test says so."""

    def __init__(self) -> None:
        from SAMRegistrationModule.SectionJob import SectionJob

        self.said: list[str] = []
        self.failed: list[str] = []
        self.cancelled: list[Any] = []
        self.found: list[Any] = []
        self.callbacks: list[dict[str, Callable]] = []
        logic = types.SimpleNamespace(cancel=self.cancelled.append, worker=types.SimpleNamespace(log=[]))
        self.job = SectionJob(logic, self.said.append, self.failed.append, cancelled="Stopped.")

    def start(self, request: Callable | None = None) -> None:
        self.job.start(request or self.wait, self.found.append)

    def wait(self, **callbacks: Callable) -> Any:
        self.callbacks.append(callbacks)
        return types.SimpleNamespace(isDone=False)


@pytest.fixture
def section(slicer: Any) -> Section:
    assert slicer.mrmlScene is not None
    return Section()


def test_a_request_is_on_its_way_until_it_has_found_something(section: Section) -> None:
    section.start()
    assert section.job.running is not None
    section.callbacks[0]["onDone"]("a map")
    assert section.job.running is None and section.found == ["a map"] and not section.said


def test_a_worker_that_cannot_be_started_leaves_nothing_on_its_way(section: Section) -> None:
    def fail(onDone: Callable, onError: Callable) -> Any:
        assert onDone is not None
        onError("The worker could not be started.", "Press Repair.", "worker-died")
        return types.SimpleNamespace(isDone=True)

    section.start(fail)
    assert section.job.running is None
    assert section.said == ["The worker could not be started.\nPress Repair."]
    assert section.failed == ["The worker could not be started."]


def test_bad_input_is_told_like_any_other_failure(section: Section) -> None:
    from SAMRegistrationModule.Geometry import InputProblem

    def refuse(**_callbacks: Callable) -> Any:
        raise InputProblem("Choose two different volumes.")

    section.start(refuse)
    assert section.said == section.failed == ["Choose two different volumes."] and section.job.running is None


def test_a_cancelled_request_is_on_its_way_until_the_worker_has_stopped(section: Section) -> None:
    section.start()
    job = section.job.running
    section.job.cancel()
    assert section.cancelled == [job] and section.job.running is job
    section.callbacks[0]["onError"]("cancelled", None, "cancelled")
    assert section.job.running is None and section.said == ["Stopped."]


def test_the_late_end_of_an_abandoned_request_does_not_end_the_next(section: Section) -> None:
    section.start()
    section.job.abandon()
    assert len(section.cancelled) == 1 and section.job.running is None
    section.start()
    following = section.job.running
    section.callbacks[0]["onError"]("cancelled", None, "cancelled")
    section.callbacks[0]["onDone"]("too late")
    assert section.job.running is following and not section.found and not section.said


def test_an_answer_may_start_the_next_request(section: Section) -> None:
    def answer(onDone: Callable, onError: Callable) -> Any:
        assert onError is not None
        onDone("first")
        return types.SimpleNamespace(isDone=True)

    section.job.start(answer, lambda found: (section.found.append(found), section.start()))
    assert section.found == ["first"] and section.job.running is not None
