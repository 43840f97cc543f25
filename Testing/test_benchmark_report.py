"""What a run leaves to be read says what the results say, and the page needs nothing beside itself."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_phantoms import OFFSET, method, write_suite

from SAMRegistrationLib.benchmark.methods import Methods
from SAMRegistrationLib.benchmark.outputs import write_outputs
from SAMRegistrationLib.benchmark.pictures import picture
from SAMRegistrationLib.benchmark.record import read_record, write_record
from SAMRegistrationLib.benchmark.results import Result
from SAMRegistrationLib.benchmark.runner import Run, collect, run_all
from SAMRegistrationLib.benchmark.suite import load_suite
from SAMRegistrationLib.benchmark.tables import (
    CSV_HEADER,
    comparison_table,
    failure_list,
    markdown,
    p_text,
    stage_table,
    write_between_markers,
)
from SAMRegistrationLib.errors import InputError

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Remembers what a page shows and loads, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two methods, one that fails, and one that is `default` by name, with everything written."""
    folder = tmp_path_factory.mktemp("report")
    methods = [
        "initial",
        method(folder, "good", "default", settings={"offset": OFFSET.tolist(), "noise": 0.5}),
        method(folder, "raising", "bad<b>"),
    ]
    reference = {"title": "Elsewhere", "source": "A & B", "columns": ["method", "Dice %"], "rows": [["X", 50.5]]}
    suite = load_suite(write_suite(folder, methods, references=[reference]))
    run = Run(suite, folder / "out", known=Methods([m for m in suite.methods if isinstance(m, dict)]), threads=1)
    run_all(run)
    write_outputs(run)
    return run


def test_the_csv_has_one_number_a_row_as_the_reports_have_them(finished: Run) -> None:
    with (finished.out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CSV_HEADER
    expected = {
        (result.pair, result.method, score["metric"], score["label"]): score["value"]
        for result in collect(finished)
        for score in result.report["scores"]
    }
    scored = {
        (row["pair"], row["method"], row["metric"], row["label"]): row["value"]
        for row in rows
        if (row["pair"], row["method"], row["metric"], row["label"]) in expected
    }
    assert {key: float(value) for key, value in scored.items()} == expected
    statuses = {(row["pair"], row["method"]): row["value"] for row in rows if row["metric"] == "status"}
    assert statuses["first", "bad<b>"] == "failed" and len(statuses) == 6
    stages = [row for row in rows if row["metric"] == "stage_seconds"]
    assert {row["label"] for row in stages} == {"guess"} and len(stages) == 2


def test_the_summary_has_means_intervals_and_paired_tests(finished: Run) -> None:
    summary = json.loads((finished.out / "summary.json").read_text(encoding="utf-8"))["balls"]
    values = [r.mean("tre_mean_mm") for r in collect(finished) if r.method == "default"]
    tre = summary["methods"]["default"]["measures"]["TRE mm"]
    assert tre["mean"] == pytest.approx(np.mean(values)) and tre["pairs"] == 2
    assert tre["low"] <= tre["mean"] <= tre["high"]
    assert summary["methods"]["bad<b>"] == {"status": {"failed": 2}, "measures": {}}
    against = {one["measure"]: one for one in summary["comparisons"] if one["method"] == "initial"}
    assert against["TRE mm"]["wins"] == 2 and against["TRE mm"]["p"] == pytest.approx(0.5)


def test_the_page_is_whole_escaped_and_self_contained(finished: Run) -> None:
    text = (finished.out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    said = " ".join(page.said)
    assert "Two balls & <organs>." in said and "bad<b>" in said and "it diverged" in said
    assert "Elsewhere" in said and "50.5" in said
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.tags.count("svg") == 3 and page.tags.count("img") >= 2


def test_pictures_of_results_are_pngs_with_something_to_see(finished: Run) -> None:
    from matplotlib.image import imread

    address = picture(finished.files("first", "initial").slices)
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    file = finished.out / "shown.png"
    file.write_bytes(base64.b64decode(data))
    pixels = imread(file)[..., :3]
    assert pixels.shape[0] > 100 and pixels.shape[1] > 300
    magenta = (pixels[..., 0] - pixels[..., 1]) > 0.2
    green = (pixels[..., 1] - pixels[..., 0]) > 0.2
    grey = (np.ptp(pixels, axis=-1) < 0.02) & (pixels[..., 0] > 0.2)
    assert magenta.any() and green.any() and grey.mean() > 0.1


def test_the_report_can_be_written_again_from_what_is_there_and_is_the_same(finished: Run) -> None:
    before = (
        (finished.out / "report.html").read_text(encoding="utf-8"),
        (finished.out / "results.csv").read_text(encoding="utf-8"),
    )
    write_outputs(finished)
    assert (
        (finished.out / "report.html").read_text(encoding="utf-8"),
        (finished.out / "results.csv").read_text(encoding="utf-8"),
    ) == before


def test_results_from_a_record_make_the_same_tables_and_leave_nothing_to_be_done(
    finished: Run, tmp_path: Path
) -> None:
    record, again = tmp_path / "record.csv", tmp_path / "again.csv"
    write_record(finished.out, record)
    elsewhere = replace(finished, out=tmp_path / "elsewhere")
    read_record(record, elsewhere.out)
    assert run_all(elsewhere) == []
    assert markdown(collect(elsewhere), 0) == markdown(collect(finished), 0)
    matrices = [(run.files("first", "default").read() or {})["matrix"] for run in (finished, elsewhere)]
    np.testing.assert_allclose(*matrices, rtol=1e-7)
    write_record(elsewhere.out, again)
    assert again.read_text() == record.read_text()


def test_a_record_tells_a_lost_organ_from_one_that_was_not_judged_and_replaces_nothing(
    finished: Run, tmp_path: Path
) -> None:
    run, record = replace(finished, out=tmp_path / "out"), tmp_path / "record.csv"
    said = {"family": "balls", "status": "done", "seconds": 2.0}
    center = {"metric": "center_mm", "label": "left", "group": "", "scored": False, "value": None}
    missing = {"status": "not installed", "message": "no", "scores": []}
    for name, report in (
        ("lost", said | {"scores": [center]}),
        ("other", said | {"scores": []}),
        ("none", missing),
    ):
        run.files("first", name).write({"pair": "first", "method": name, **report})
    write_record(run.out, record)
    elsewhere = replace(run, out=tmp_path / "elsewhere")
    elsewhere.files("first", "other").write({"status": "failed", "message": "here", "scores": []})
    read_record(record, elsewhere.out)
    assert (elsewhere.files("first", "lost").read() or {})["scores"] == [center]
    assert (elsewhere.files("first", "other").read() or {})["message"] == "here"
    assert elsewhere.files("first", "none").read() is None


@pytest.mark.parametrize("text", ["one,two\n1,2\n", "pair,method,seconds\na,b,soon\n", "pair,method\na,b,c\n"])
def test_another_table_is_refused_as_a_record_and_nothing_is_written(tmp_path: Path, text: str) -> None:
    record = tmp_path / "record.csv"
    record.write_text(text)
    with pytest.raises(InputError, match="record"):
        read_record(record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_of_nothing_is_a_report(finished: Run, tmp_path: Path) -> None:
    page = Page(write_outputs(replace(finished, out=tmp_path)).read_text(encoding="utf-8"))
    assert "0 pairs" in " ".join(page.said)


def report_of(dice: float | None, family: str = "openkbp_inter", pair: str = "a", name: str = "initial") -> Result:
    score: dict[str, Any] = {"metric": "dice", "label": "Larynx", "group": "neck", "scored": True, "value": dice}
    center = score | {"metric": "center_mm", "value": 8.0 if dice else None}
    report = {"status": "done", "seconds": 2.0, "peak_memory_mib": 512.0, "scores": [score, center]}
    return Result(pair, family, name, report)


def test_tables_average_over_pairs_and_count_failures() -> None:
    failed = Result("b", "openkbp_inter", "sitk-affine", {"status": "failed", "message": "no", "scores": []})
    results = [
        report_of(0.2, pair="a"),
        report_of(0.4, pair="b"),
        report_of(0.5, pair="a", name="sitk-affine"),
        failed,
    ]
    text = markdown(results, 0)
    assert "| initial | 2 | 30.0 | 26.0 | 8.0 | 2 | 8.0 | 2.0 | 0.5 |" in text
    assert "| sitk-affine | 1 of 2 | 50.0 | 50.0 | 8.0 | 1 | 8.0 | 2.0 | 0.5 |" in text
    assert failure_list(results) == "- `sitk-affine`, failed: no (1 pair)\n"


def test_lost_organs_and_failures_are_not_aligned() -> None:
    family = "starts_cut"
    far = report_of(0.6, family, "b", "affine")
    far.report["scores"][1]["value"] = 26.0
    results = [
        report_of(0.6, family, "a", "affine"),
        far,
        report_of(0.0, family, "c", "affine"),
        Result("d", family, "affine", {"status": "failed", "message": "no", "scores": []}),
    ]
    row = next(line for line in markdown(results, 0).splitlines() if line.startswith("| affine"))
    assert "| 3 of 4 |" in row
    assert results[2].worst_center == math.inf
    assert "all centers in 25 mm" in markdown(results, 0) and "| 1 |" in row


def test_paired_differences_name_who_is_better() -> None:
    results = [report_of(0.5 + 0.1 * n, pair=str(n), name=m) for n in range(3) for m in ("default", "peer")]
    for one in results:
        if one.method == "default":
            one.report["scores"][0]["value"] += 0.05
    row = next(line for line in comparison_table(results, 0).splitlines() if line.startswith("| peer"))
    assert row == "| peer | Dice % | 3 | +5.0 (+5.0 to +5.0) | 3 | 0.250 | 0.250 |"
    assert comparison_table([one for one in results if one.method == "peer"], 0) == ""
    assert (p_text(0.0004), p_text(0.5), p_text(math.nan)) == ("< 0.001", "0.500", "")


def test_stages_are_told_by_their_median() -> None:
    results = [report_of(0.5, pair=str(n)) for n in range(3)]
    for result, seconds in zip(results, (1.0, 9.0, 2.0), strict=True):
        result.report["stages"] = {"align": seconds}
    assert "| initial | 2.0 |" in stage_table(results)
    assert stage_table([report_of(0.5, name="peer")]) == ""


def test_tables_replace_only_what_stands_between_the_markers(tmp_path: Path) -> None:
    target = tmp_path / "RESULTS.md"
    target.write_text("before\n<!-- balls: begin -->\nold\n<!-- balls: end -->\nafter\n")
    write_between_markers("\nnew\n", "balls", target)
    written = target.read_text(encoding="utf-8")
    assert written.startswith("before") and written.endswith("after\n")
    assert "old" not in written and "new" in written
    with pytest.raises(ValueError, match="no markers"):
        write_between_markers("", "other", target)
