"""How cost grows with size: the measuring of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import phantom_pair

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.benchmark.scaling import cubes, doubling_factor, table
from SAMRegistrationLib.cli import main
from SAMRegistrationLib.image_io import write_image


def row(side: int, seconds: float, memory: float) -> dict[str, object]:
    return {
        "stage": "align",
        "side": side,
        "seconds": seconds,
        "processor_seconds": seconds,
        "memory_mib": memory,
    }


def test_the_factor_is_per_doubling_whatever_the_ratio_of_the_sides() -> None:
    assert doubling_factor(row(64, 1.0, 1.0), row(256, 64.0, 1.0), "seconds") == pytest.approx(8)
    assert doubling_factor(row(64, 1.0, 1.0), row(96, 1.5**3, 1.0), "seconds") == pytest.approx(8)


def test_what_grows_faster_than_the_voxels_is_marked() -> None:
    good, bad = (table([row(64, 1.0, 50.0), row(128, factor, 400.0)]) for factor in (8.0, 9.0))
    assert "too much" not in good
    assert "too much" in bad


def test_small_and_large_cubes_are_full_of_the_same_content() -> None:
    grid = Grid((20, 24, 28), (2.0,) * 3)
    image = Image(
        torch.from_numpy(np.random.default_rng(0).normal(size=grid.shape)).float() * 100, grid, "int16", "CT"
    )
    small, large = (cubes(image, side)[0] for side in (16, 48))
    assert small.grid.size == (16,) * 3
    assert large.grid.size == (48,) * 3
    assert float(large.data.std()) == pytest.approx(float(image.data.std()), rel=0.1)
    assert float(large.data.abs().min(dim=0).values.max()) > 0


@pytest.mark.slow
def test_the_command_measures_every_stage_of_every_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(phantom_pair(spacing=4.0).fixed, tmp_path / "ct.nii.gz")
    arguments = [
        "scaling",
        str(tmp_path / "ct.nii.gz"),
        "--sides",
        "32,48",
        "--preset",
        "convexadam",
        "--threads",
        "1",
    ]
    assert main([*arguments, "-o", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["side"] for row in rows} == {"32", "48"}
    assert {"prepare", "align", "finish"} <= {row["stage"] for row in rows}
    assert all(float(row["processor_seconds"]) > 0 for row in rows)
    assert "per doubling" in capsys.readouterr().out


def test_sides_that_are_no_numbers_are_a_wrong_use(tmp_path: Path) -> None:
    assert main(["scaling", str(tmp_path / "ct.nii.gz"), "--sides", "64,big"]) == 2
