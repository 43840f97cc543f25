"""The content of report.json, and reports as text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.field import DisplacementField
from SAMRegistrationLib.files import checksum
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.metrics import StageRecorder, field_quality
from SAMRegistrationLib.report import (
    SCHEMA_VERSION,
    build_report,
    describe_input,
    json_ready,
    similarity_under,
    write_report,
)
from SAMRegistrationLib.sampling import Interpolation
from SAMRegistrationLib.tables import number, report_text, text_table

GRID = Grid((12, 11, 10), (2.0, 2.0, 3.0))


def noise(grid: Grid = GRID) -> Image:
    return Image(torch.randn(grid.shape, generator=torch.Generator().manual_seed(1)), grid, "int16", "CT")


def example_report() -> dict:
    recorder = StageRecorder()
    with recorder.stage("features"):
        pass
    with recorder.stage("solve"):
        pass
    image, still = noise(), DisplacementField.zero(GRID)
    return build_report(
        inputs={"fixed": describe_input(image), "moving": describe_input(image)},
        preset="default",
        settings={"features": "mind", "weights": (1, 2.5)},
        device="cpu",
        recorder=recorder,
        similarity_before=similarity_under(still, image, image),
        similarity_after=similarity_under(still, image, image),
        field=field_quality(still.to_voxels()),
        warnings=["the alignment looks wrong"],
        details={"alignment": {"residual_mm": np.float32(1.5), "scores": torch.ones(2)}},
    )


def test_a_report_says_what_ran_on_what_how_long_and_how_well() -> None:
    report = example_report()
    assert report["schema_version"] == SCHEMA_VERSION
    assert report["preset"] == "default"
    assert report["machine"]["device"] == "cpu"
    assert [stage["name"] for stage in report["stages"]] == ["features", "solve"]
    assert report["seconds"] >= 0
    assert report["peak_memory_mib"] > 10
    assert report["similarity"]["after"]["normalized_cross_correlation"] == pytest.approx(1)
    assert report["field"]["folded_percent"] == 0
    assert report["details"]["alignment"] == {"residual_mm": 1.5, "scores": [1, 1]}


def test_a_report_survives_being_written_and_read(tmp_path: Path) -> None:
    report = example_report()
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report


def test_a_report_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_report({}, tmp_path / "file" / "report.json")


def test_an_input_is_told_by_the_checksum_of_its_file_or_of_its_values(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("1,2,3\n")
    assert describe_input(None, path) == {"path": str(path), "sha256": checksum(path)}
    image = noise()
    other = image.with_data(image.data + 1)
    description = describe_input(image)
    assert description["size"] == [12, 11, 10]
    assert description["modality"] == "CT"
    assert description["sha256"] != describe_input(other)["sha256"]
    with pytest.raises(ValueError, match="volume, a file or both"):
        describe_input(None)


def test_similarity_is_measured_only_where_both_volumes_have_data() -> None:
    fixed = noise()
    half = GRID.cropped((0, 0, 0), (6, 11, 10))
    moving = fixed.resampled(half, Interpolation.NEAREST)
    measured = similarity_under(DisplacementField.zero(GRID), fixed, moving)
    assert measured["overlap"] == pytest.approx(0.5)
    assert measured["normalized_cross_correlation"] == pytest.approx(1)
    away = DisplacementField(torch.full((1, 3, *GRID.shape), 1000.0), GRID)
    assert similarity_under(away, fixed, moving) == {
        "overlap": 0.0,
        "normalized_cross_correlation": None,
        "mutual_information": None,
    }


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    value = {1: (math.nan, math.inf), "path": Path("a"), "mode": Interpolation.LINEAR, "flag": np.bool_(True)}
    assert json_ready(value) == {"1": [None, None], "path": "a", "mode": "linear", "flag": True}


def test_tables_are_aligned_in_columns() -> None:
    table = text_table(("label", "Dice"), [("liver", number(0.91234, 3)), ("left kidney", number(None, 3))])
    assert table.splitlines() == [
        "label         Dice",
        "-----------  -----",
        "liver        0.912",
        "left kidney      -",
    ]


def test_a_report_as_text_fits_a_terminal_and_shows_stages_and_warnings() -> None:
    text = report_text(example_report())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "solve" in text
    assert "warning: the alignment looks wrong" in text
    assert "folded voxels %" in text
