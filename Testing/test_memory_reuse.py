"""Memory that a registration frees is used again by it, and given back at its end."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from SAMRegistrationLib.memory_reuse import freed_and_kept, freed_memory_kept, give_back_much, own_pages
from SAMRegistrationLib.metrics.resources import resident_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells glibc what to do")

LARGE = 48 * 2**20
"""Bytes, more than what glibc ever keeps by itself."""

FEW = 2 * LARGE // resource.getpagesize()
"""Page faults, a fifth of those of ten arrays."""


def page_faults_of_large_temporaries() -> int:
    """Pages that the system had to provide for the last ten of arrays made and freed one after the other."""
    # The first ones find their place in the heap.
    for _ in range(10):
        torch.ones(LARGE, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(LARGE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def large_temporary_arrays_are_not_fetched_from_the_system_each_time() -> None:
    with freed_memory_kept():
        assert page_faults_of_large_temporaries() < FEW


def bodies_within_each_other_keep_until_the_last_has_ended() -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            page_faults_of_large_temporaries()
        assert page_faults_of_large_temporaries() < FEW


def what_was_kept_is_given_back_at_the_end_even_after_an_error() -> None:
    before = resident_memory()
    with pytest.raises(ValueError, match="cut off"), freed_memory_kept():
        torch.ones(4 * LARGE, dtype=torch.uint8)
        raise ValueError("cut off")
    after = resident_memory()
    assert before is not None and after is not None and after < before + LARGE / 2**20


def much_freed_memory_is_given_back_on_the_way_and_little_is_kept() -> None:
    with freed_memory_kept():
        torch.ones(24 * LARGE, dtype=torch.uint8)
        before = freed_and_kept()
        give_back_much()
        after = freed_and_kept()
        torch.ones(4 * LARGE, dtype=torch.uint8)
        little = freed_and_kept()
        give_back_much()
        assert freed_and_kept() == pytest.approx(little, abs=LARGE)
    assert before > 24 * LARGE
    assert after < before - 23 * LARGE
    assert little > after + 3 * LARGE


def what_is_in_use_does_not_count_as_freed() -> None:
    with freed_memory_kept():
        before = freed_and_kept()
        held = torch.ones(8 * LARGE, dtype=torch.uint8)
        assert freed_and_kept() == pytest.approx(before, abs=LARGE)
        assert held.nbytes == 8 * LARGE


def own_pages_are_given_back_as_soon_as_an_array_is_freed() -> None:
    size = 2**28
    with freed_memory_kept():
        before = freed_and_kept()
        with own_pages(size):
            array = torch.ones(size, dtype=torch.uint8)
        assert len(array) == size
        del array
        assert freed_and_kept() < before + size / 4
        torch.ones(size, dtype=torch.uint8)
        assert freed_and_kept() > before + size / 2, "without them it is kept"


@pytest.mark.parametrize(
    "holds",
    [
        large_temporary_arrays_are_not_fetched_from_the_system_each_time,
        bodies_within_each_other_keep_until_the_last_has_ended,
        what_was_kept_is_given_back_at_the_end_even_after_an_error,
        much_freed_memory_is_given_back_on_the_way_and_little_is_kept,
        what_is_in_use_does_not_count_as_freed,
        own_pages_are_given_back_as_soon_as_an_array_is_freed,
    ],
    ids=lambda function: function.__name__,
)
def test_in_a_process_of_its_own(holds: Callable[[], None]) -> None:
    """What other tests left in the heap decides where arrays find a place, and what can be given back."""
    code = f"from Testing.test_memory_reuse import {holds.__name__} as holds; holds()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
