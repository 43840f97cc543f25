"""A worker that runs all day."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from phantoms import centered_grid, phantom_pair

from SAMRegistrationLib import write_image
from SAMRegistrationLib.worker.client import WorkerClient

REGISTRATIONS = 200
WARM_UP = 20
MOST_GROWTH_MIB = 4.0
CHEAP = {
    "name": "cheap",
    "summary": "Every part of a registration but the search for an alignment, with little to do.",
    "features": "mind",
    "fallback": None,
    "spacing": 5.0,
    "stages": [
        {"method": "align"},
        {"method": "message_passing", "radii": [1, 1]},
        {"method": "instance_optimization", "iterations": 2},
    ],
}


@pytest.mark.slow
def test_two_hundred_registrations_do_not_grow_the_workers_memory(tmp_path: Path) -> None:
    grid = centered_grid(5.0, (120, 120, 120))
    pair = phantom_pair(offset=(4, -3, 5), fixed_grid=grid, moving_grid=grid)
    write_image(pair.fixed, tmp_path / "fixed.nrrd")
    write_image(pair.moving, tmp_path / "moving.nrrd")
    (tmp_path / "cheap.json").write_text(json.dumps(CHEAP))
    with WorkerClient(device="cpu", threads=1) as client:

        def register(times: int) -> float:
            """Register so many times; the memory in MiB that the worker holds then."""
            for _ in range(times):
                client.register(
                    tmp_path / "fixed.nrrd",
                    tmp_path / "moving.nrrd",
                    output=tmp_path / "job",
                    preset=tmp_path / "cheap.json",
                    initial=np.eye(4).tolist(),
                    outputs=["warped"],
                )
            return float(client.memory()["resident_mib"])

        process = client.hello()["process"]
        warm = register(WARM_UP)
        growth = register(REGISTRATIONS - WARM_UP) - warm
        assert client.hello()["process"] == process, "one worker did it all"
    assert growth < MOST_GROWTH_MIB


@pytest.mark.slow
def test_kept_embeddings_stay_within_their_bound(tmp_path: Path) -> None:
    """Ever other volumes come; the cache never holds more than it may, and the worker no more than a bit above."""
    limit = 8 * 2**20
    grid = centered_grid(4.0, (96, 96, 96))
    with WorkerClient(device="cpu", threads=1, cache_bytes=limit) as client:
        for number in range(4):
            pair = phantom_pair(offset=(number, 0, 0), fixed_grid=grid, moving_grid=grid)
            for name in ("fixed", "moving"):
                write_image(getattr(pair, name), tmp_path / f"{name}.nrrd")
            client.match(tmp_path / "fixed.nrrd", tmp_path / "moving.nrrd", [[0, 0, 0]])
            (cache,) = client.memory()["caches"]
            assert 0 < cache["bytes"] <= cache["limit_bytes"] == limit
