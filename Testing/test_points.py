"""Points keep their place in the world through every format and coordinate system."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SAMRegistrationLib.errors import InputError, RegistrationWarning
from SAMRegistrationLib.points import PointSet, read_point_pairs, read_points, write_point_pairs, write_points

SUFFIXES = (".mrk.json", ".fcsv", ".csv")
LPS = [[1.5, -2.0, 3.25], [-40.0, 50.125, -600.0]]
RAS = [[-1.5, 2.0, 3.25], [40.0, -50.125, -600.0]]

coordinates = st.floats(-2000, 2000)
names = st.text('ab1_-,;"#µß骨', max_size=6)


def points_strategy() -> st.SearchStrategy[PointSet]:
    entry = st.tuples(coordinates, coordinates, coordinates, names)
    return st.lists(entry, min_size=1, max_size=6).map(
        lambda entries: PointSet(
            np.array([entry[:3] for entry in entries]), tuple(str(entry[3]) for entry in entries)
        )
    )


def markups(*entries: dict[str, Any], **properties: Any) -> dict[str, Any]:
    points = entries or tuple({"label": f"F-{n}", "position": p} for n, p in enumerate(LPS, start=1))
    return {"@schema": "markups-schema-v1.0.3.json#", "markups": [{"controlPoints": list(points), **properties}]}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(points=points_strategy())
def test_every_format_gives_back_the_very_same_points(tmp_path: Path, points: PointSet) -> None:
    for suffix in SUFFIXES:
        write_points(points, tmp_path / f"points{suffix}")
        found = read_points(tmp_path / f"points{suffix}")
        np.testing.assert_array_equal(found.points, points.points)
        assert found.labels == points.labels


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fixed=points_strategy())
def test_pairs_come_back_as_they_were_written(tmp_path: Path, fixed: PointSet) -> None:
    moving = fixed.mapped(lambda points: 2 * points - 1)
    write_point_pairs(fixed, moving, tmp_path / "pairs.csv")
    found_fixed, found_moving = read_point_pairs(tmp_path / "pairs.csv")
    np.testing.assert_array_equal(found_fixed.points, fixed.points)
    np.testing.assert_array_equal(found_moving.points, moving.points)
    assert found_fixed.labels == found_moving.labels == fixed.labels


@pytest.mark.parametrize(
    ("system", "positions"),
    [("LPS", LPS), ("RAS", RAS), ("lps", LPS), (0, RAS), (1, LPS), ("0", RAS), (None, LPS)],
)
def test_markups_honor_their_coordinate_system(tmp_path: Path, system: Any, positions: list[list[float]]) -> None:
    properties = {} if system is None else {"coordinateSystem": system}
    entries = [{"label": f"F-{n}", "position": p} for n, p in enumerate(positions, start=1)]
    found = read_points(write_json(tmp_path / "f.mrk.json", markups(*entries, type="Fiducial", **properties)))
    np.testing.assert_array_equal(found.points, LPS)
    assert found.labels == ("F-1", "F-2")


@pytest.mark.parametrize("kind", ["Line", "Curve", "ClosedCurve", "Angle", "Plane"])
def test_other_markups_give_their_control_points(tmp_path: Path, kind: str) -> None:
    found = read_points(write_json(tmp_path / "m.json", markups(type=kind)))
    np.testing.assert_array_equal(found.points, LPS)


@pytest.mark.parametrize("unit", ["um", ["um", "UCUM", "micrometer"]])
def test_markups_honor_their_unit(tmp_path: Path, unit: Any) -> None:
    found = read_points(write_json(tmp_path / "m.mrk.json", markups(type="Fiducial", coordinateUnits=unit)))
    np.testing.assert_allclose(found.points, np.array(LPS) / 1000)


def test_points_without_a_position_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = write_json(
        tmp_path / "f.mrk.json",
        markups(
            {"label": "a", "position": LPS[0], "positionStatus": "defined"},
            {"label": "b", "position": [0, 0, 0], "positionStatus": "undefined"},
            {"label": "c", "position": [0, 0, 0], "positionStatus": "preview"},
            {"label": "d"},
        ),
    )
    with pytest.warns(RegistrationWarning, match="3 points without a position"):
        found = read_points(path)
    assert found.labels == ("a",)


def test_written_markups_have_what_slicer_asks_for(tmp_path: Path) -> None:
    """Slicer compares the schema's name with a pattern, refuses other units, and needs a type."""
    write_points(PointSet(np.array(LPS), ("a", "b")), tmp_path / "f.mrk.json")
    document = json.loads((tmp_path / "f.mrk.json").read_text())
    assert document["@schema"].endswith("markups-schema-v1.0.3.json#")
    (markup,) = document["markups"]
    assert (markup["type"], markup["coordinateSystem"], markup["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
    assert [point["position"] for point in markup["controlPoints"]] == LPS
    assert [point["id"] for point in markup["controlPoints"]] == ["1", "2"]
    assert {point["positionStatus"] for point in markup["controlPoints"]} == {"defined"}
    assert {len(point["orientation"]) for point in markup["controlPoints"]} == {9}


def test_a_written_fcsv_keeps_slicers_columns(tmp_path: Path) -> None:
    """Slicer takes the columns by their place, whatever the header says: x, y, z second, the label twelfth."""
    write_points(PointSet(np.array(LPS), ("a", "b")), tmp_path / "f.fcsv")
    lines = (tmp_path / "f.fcsv").read_text().splitlines()
    assert lines[0].startswith("# Markups fiducial file version = ")
    assert lines[1] == "# CoordinateSystem = LPS"
    assert [line.split(",")[1:4] for line in lines[3:]] == [[str(value) for value in row] for row in LPS]
    assert [line.split(",")[11] for line in lines[3:]] == ["a", "b"]


@pytest.mark.parametrize(("system", "positions"), [("LPS", LPS), ("RAS", RAS), ("0", RAS), ("1", LPS)])
def test_fcsv_honors_its_coordinate_system_and_columns(
    tmp_path: Path, system: str, positions: list[list[float]]
) -> None:
    rows = [f"{name},x,{x},{z},{y}" for name, (x, y, z) in zip("ab", positions, strict=True)]
    header = [
        "# Markups fiducial file version = 4.11",
        f"# CoordinateSystem = {system}",
        "# columns = label,id,x,z,y",
    ]
    (tmp_path / "f.fcsv").write_text("\n".join([*header, *rows]) + "\n")
    found = read_points(tmp_path / "f.fcsv")
    np.testing.assert_array_equal(found.points, LPS)
    assert found.labels == ("a", "b")


def test_an_fcsv_that_names_no_system_is_ras_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "f.fcsv").write_text("\n".join(f"F,{x},{y},{z},1,1" for x, y, z in RAS))
    with pytest.warns(RegistrationWarning, match="RAS is assumed"):
        found = read_points(tmp_path / "f.fcsv")
    np.testing.assert_array_equal(found.points, LPS)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("1.5,-2,3.25\n-40,50.125,-600\n", ("", "")),
        ("1.5,-2,3.25,a\n-40,50.125,-600,b\n", ("a", "b")),
        ("x,y,z\n1.5,-2,3.25\n-40,50.125,-600\n", ("", "")),
        ("X, Y, Z, Label\r\n1.5, -2, 3.25, a\r\n\r\n-40, 50.125, -600, b\r\n", ("a", "b")),
        ('label,z,y,x\na,3.25,-2,1.5\n"b, c",-600,50.125,-40\n', ("a", "b, c")),
        ("# CoordinateSystem = RAS\nx,y,z\n-1.5,2,3.25\n40,-50.125,-600\n", ("", "")),
        ("\ufeffx,y,z\n1.5,-2,3.25\n-40,50.125,-600\n", ("", "")),
        ("label,l,p,s\na,1.5,-2,3.25\nb,-40,50.125,-600\n", ("a", "b")),
        ("label,r,a,s,defined,selected\na,-1.5,2,3.25,1,1\nb,40,-50.125,-600,1,1\n", ("a", "b")),
    ],
    ids=["bare", "labels", "header", "spaces", "order", "RAS", "byte order mark", "Slicer LPS", "Slicer RAS"],
)
def test_csv_tables_of_many_kinds_are_understood(tmp_path: Path, text: str, labels: tuple[str, ...]) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8", newline="")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_points(tmp_path / "p.csv")
    np.testing.assert_array_equal(found.points, LPS)
    assert found.labels == labels


def test_undefined_rows_of_slicers_table_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("label,l,p,s,defined\na,1,2,3,1\nb,0,0,0,0\n")
    with pytest.warns(RegistrationWarning, match="1 points without a position"):
        assert read_points(tmp_path / "p.csv").labels == ("a",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.csv", None, "file not found"),
        ("p.txt", "1,2,3", "not a file of points"),
        ("p.csv", "", "holds no points"),
        ("p.csv", "x,y,z\n", "holds no points"),
        ("p.csv", "a,b,c\n1,2,3\n", "needs the columns x,y,z"),
        ("p.csv", "1,2,3\n1,2\n", "line 2 must be 3 finite numbers"),
        ("p.csv", "1,2,3\n\n1,2,three\n", "line 3 must be 3 finite numbers"),
        ("p.csv", "1,2,nan\n", "line 1 must be 3 finite numbers"),
        ("p.csv", "fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n1,2,3,4,5,6\n", "holds pairs"),
        ("p.csv", "# CoordinateSystem = XYZ\n1,2,3\n", "coordinate system XYZ is not known"),
        ("p.mrk.json", '{"markups": [', "not valid JSON"),
        ("p.mrk.json", '{"points": []}', "not a Slicer markups file"),
        ("p.mrk.json", '{"markups": []}', "not a Slicer markups file"),
        ("p.mrk.json", '{"markups": [{"type": "ROI"}]}', "holds an ROI"),
        ("p.mrk.json", '{"markups": [{"type": "Fiducial"}]}', "holds no points"),
        ("p.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}', "3 finite numbers"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}', "IJK is not known"),
        ("p.mrk.json", '{"markups": [{"coordinateUnits": "inch", "controlPoints": []}]}', "inch is not known"),
    ],
)
def test_what_holds_no_points_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_points(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_binary_files_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="cannot be read as a text file"):
        read_points(tmp_path / "p.csv")


def test_points_of_two_files_belong_together_by_name_or_else_by_order(tmp_path: Path) -> None:
    write_points(PointSet(np.array(LPS), ("a", "b")), tmp_path / "fixed.csv")
    write_points(PointSet(np.array(LPS[::-1]), ("b", "a")), tmp_path / "named.fcsv")
    write_points(PointSet(np.array(LPS[::-1]), ("b", "c")), tmp_path / "other.mrk.json")
    fixed, moving = read_point_pairs(tmp_path / "fixed.csv", tmp_path / "named.fcsv")
    np.testing.assert_array_equal(fixed.points, moving.points)
    assert fixed.labels == moving.labels
    _, moving = read_point_pairs(tmp_path / "fixed.csv", tmp_path / "other.mrk.json")
    np.testing.assert_array_equal(moving.points, LPS[::-1])


def test_pairs_that_do_not_correspond_are_refused(tmp_path: Path) -> None:
    write_points(PointSet(np.array(LPS)), tmp_path / "two.csv")
    write_points(PointSet(np.array(LPS[:1])), tmp_path / "one.csv")
    with pytest.raises(InputError, match=r"holds 2 points and .* 1; they must correspond"):
        read_point_pairs(tmp_path / "two.csv", tmp_path / "one.csv")
    with pytest.raises(InputError, match="not a table of point pairs"):
        read_point_pairs(tmp_path / "two.csv")


@pytest.mark.data
def test_the_landmarks_of_the_lung_pair_are_read(data_dir: Path) -> None:
    path = data_dir / "lung_pairs" / "plm_4dct_silver_landmarks.csv"
    fixed, moving = read_point_pairs(path)
    expected = np.loadtxt(path, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(np.hstack([fixed.points, moving.points]), expected)


def test_line_breaks_in_labels_become_spaces_in_tables(tmp_path: Path) -> None:
    write_points(PointSet(np.array(LPS), ("a\nb", "c")), tmp_path / "p.csv")
    assert read_points(tmp_path / "p.csv").labels == ("a b", "c")


def test_an_unknown_kind_of_point_file_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_points(PointSet(np.array(LPS)), tmp_path / "p.vtk")


@pytest.mark.parametrize(
    ("points", "labels"),
    [(np.zeros((2, 2)), ()), (np.zeros(3), ()), ([[0, 0, np.inf]], ()), ([[0, 0, 0]], ("a", "b"))],
)
def test_a_point_set_refuses_what_are_no_points(points: Any, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="points"):
        PointSet(points, labels)


def test_selecting_keeps_labels_with_their_points() -> None:
    points = PointSet(np.arange(9.0).reshape(3, 3), ("a", "b", "c"))
    assert points.selected([2, 0]).labels == ("c", "a")
    np.testing.assert_array_equal(points.selected(np.array([False, True, True])).points, points.points[1:])
    assert len(PointSet(np.empty((0, 3)))) == 0
