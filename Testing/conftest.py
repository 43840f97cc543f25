"""Shared fixtures: the real data folder, or a skip that says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# The same examples every time, so that a change alone decides; `--hypothesis-profile search` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """The suite is meant for two cores; more threads only slow it down there."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of many small operations, which threads slow down and make depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real volumes; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SAMREG_DATA", DEFAULT_DATA))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"real data not found in {folder}; set SAMREG_DATA to test with it")
    return folder
