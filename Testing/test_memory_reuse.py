"""Memory that a registration frees is used again by it, and given back at its end."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from SAMRegistrationLib.memory_reuse import freed_memory_kept
from SAMRegistrationLib.metrics.resources import resident_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells glibc what to do")

LARGE = 48 * 2**20
"""Bytes, more than what glibc ever keeps by itself."""

FEW = 2 * LARGE // resource.getpagesize()
"""Page faults, a fifth of those of ten arrays."""


def page_faults_of_large_temporaries() -> int:
    """Pages that the system had to provide for ten arrays that were made and freed one after the other."""
    torch.ones(LARGE, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(LARGE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_temporary_arrays_are_not_fetched_from_the_system_each_time() -> None:
    with freed_memory_kept():
        assert page_faults_of_large_temporaries() < FEW


def test_bodies_within_each_other_keep_until_the_last_has_ended() -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            page_faults_of_large_temporaries()
        assert page_faults_of_large_temporaries() < FEW


def test_what_was_kept_is_given_back_at_the_end_even_after_an_error() -> None:
    before = resident_memory()
    with pytest.raises(ValueError, match="cut off"), freed_memory_kept():
        torch.ones(4 * LARGE, dtype=torch.uint8)
        raise ValueError("cut off")
    after = resident_memory()
    assert before is not None and after is not None and after < before + LARGE / 2**20
