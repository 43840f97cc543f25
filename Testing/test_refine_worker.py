"""The request `refine` of a real worker, and the command `samreg refine`, from files to files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused
from phantoms import PhantomPair, phantom_pair
from strategies import rotation

from SAMRegistrationLib import (
    AffineTransform,
    PointSet,
    RegionOfInterest,
    read_transform,
    write_image,
    write_transform,
)
from SAMRegistrationLib.cli import main
from SAMRegistrationLib.errors import Cancelled, InputError, UsageError
from SAMRegistrationLib.pipeline import OUTPUTS
from SAMRegistrationLib.points import write_point_pairs, write_points
from SAMRegistrationLib.roi import write_roi
from SAMRegistrationLib.worker.client import WorkerClient

ACCEPTED = AffineTransform.about_center(rotation((0.06, -0.04, 0.09)), (0, 0, 0), (14, -9, 20))
"""The rigid part of the phantoms' truth."""

BOX = {"center": [5, -5, 5], "size": [40, 40, 40]}
FAST: dict[str, Any] = {"iterations": 30, "similarity": "mse", "margin_mm": 16.0}


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(4.0)


@pytest.fixture(scope="module")
def files(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("volumes")
    for name in ("fixed", "moving"):
        write_image(getattr(pair, name), folder / f"{name}.nii.gz")
    write_transform(ACCEPTED, folder / "transform.h5")
    names = {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "transform": "transform.h5"}
    return {name: str(folder / file) for name, file in names.items()}


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerClient]:
    with WorkerClient(device="cpu", threads=1, grace_seconds=15.0) as client:
        client.hello()
        yield client


def landmarks(pair: PhantomPair, count: int = 4) -> list[dict[str, Any]]:
    points = pair.inside(60)
    points = points[np.abs(points - BOX["center"]).max(axis=1) < 18][:count]
    return [
        {"fixed": fixed.tolist(), "moving": moving.tolist()}
        for fixed, moving in zip(points, pair.truth(points), strict=True)
    ]


def test_a_worker_refines_a_box_with_landmarks_and_tells_what_that_reached(
    client: WorkerClient, pair: PhantomPair, files: dict[str, str], tmp_path: Path
) -> None:
    heard: list[tuple[str, float]] = []
    points = landmarks(pair)
    result = client.refine(
        **files,
        output=tmp_path / "job",
        regions=[BOX],
        points=points,
        inverse=True,
        outputs=["warped", "displacement"],
        progress=lambda *told: heard.append(told),
        **FAST,
    )
    (region,) = result["regions"]
    assert region["rmse_after"] < 0.7 * region["rmse_before"] and len(region["loss"]) == 30
    assert region["center"] == BOX["center"] and region["size"] == BOX["size"]
    found = result["landmarks"]
    assert np.mean(found["tre_after_mm"]) < 0.7 * np.mean(found["tre_before_mm"])
    assert len(found["tre_after_mm"]) == len(points) and found["suspicious"] == []
    for name in ("transform", "field", "inverse", "warped", "displacement"):
        assert Path(result[name]).is_file()
    assert json.loads((tmp_path / "job" / "report.json").read_text())["inputs"]["transform"]["sha256"]
    stages = [stage for stage, _ in heard]
    assert {"prepare", "region 1", "finish", "write"} <= set(stages)
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)

    inside = pair.inside(200)
    refined = read_transform(result["transform"]).transform_points(inside)  # type: ignore[attr-defined]
    untouched = ~RegionOfInterest(np.array([5.0, -5, 5]), np.full(3, 20.0 + 16 + 8)).contains(inside)
    assert untouched.any()
    np.testing.assert_allclose(refined[untouched], ACCEPTED.transform_points(inside)[untouched], atol=1e-4)
    inverse = read_transform(result["inverse"])
    back = inverse.transform_points(refined)  # type: ignore[attr-defined]
    assert np.median(np.linalg.norm(back - inside, axis=1)) < 0.1


def test_a_refined_transform_can_be_refined_again_and_volumes_are_read_once(
    client: WorkerClient, files: dict[str, str], tmp_path: Path
) -> None:
    first = client.refine(**files, output=tmp_path / "first", regions=[BOX], **FAST)
    again = client.refine(
        **{**files, "transform": first["transform"]}, output=tmp_path / "again", regions=[BOX], **FAST
    )
    assert again["regions"][0]["rmse_before"] == pytest.approx(first["regions"][0]["rmse_after"], rel=1e-3)
    assert again["regions"][0]["rmse_after"] < again["regions"][0]["rmse_before"]
    (cpu,) = [cache for cache in client.memory()["caches"] if cache["device"] == "cpu"]
    kept = [entry["description"] for entry in cpu["contents"]]
    assert kept.count("volume of fixed.nii.gz") == 1 and kept.count("volume of moving.nii.gz") == 1


def test_a_refinement_is_cancelled_between_iterations_and_leaves_nothing(
    client: WorkerClient, files: dict[str, str], tmp_path: Path
) -> None:
    process = client.process_id
    threading.Timer(1.0, client.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        client.refine(**files, output=tmp_path / "job", regions=[BOX], iterations=100_000)
    assert time.monotonic() - started < 15
    assert not (tmp_path / "job").exists()
    assert client.hello()["process"] == process


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"transform": None}, UsageError, "no registration to refine yet"),
        ({"transform": "nowhere.h5"}, InputError, "transform file not found"),
        ({"regions": []}, UsageError, "nothing to refine"),
        ({"regions": [{"center": [0, 0, 0]}]}, UsageError, "a region needs a center, a size"),
        (
            {"regions": [{"center": [0, 0, 0], "size": [0, 5, 5]}]},
            InputError,
            "sides of a region must be positive",
        ),
        ({"regions": [{"center": [900, 0, 0], "size": [9, 9, 9]}]}, InputError, "outside the fixed volume"),
        ({"points": [{"fixed": [0, 0, 0], "moving": None}]}, InputError, "landmark 1 has no moving position"),
        ({"points": [{"fixed": [0, 0, 900], "moving": [0, 0, 0]}]}, InputError, "landmark 1 lies outside"),
        ({"similarity": "best"}, UsageError, "unknown similarity"),
        ({"outputs": ["video"]}, UsageError, "no output 'video'"),
    ],
)
def test_mistakes_are_told_in_one_sentence_and_nothing_is_written(
    client: WorkerClient,
    files: dict[str, str],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        client._call("refine", {**files, "regions": [BOX], "output": str(tmp_path / "job"), **FAST, **changes})
    assert not (tmp_path / "job").exists()


def arguments(files: dict[str, str], output: Path, *more: str | Path) -> list[str]:
    volumes = [files["fixed"], files["moving"], "-t", files["transform"], "-o", str(output)]
    return ["refine", *volumes, "--iterations", "20", "--similarity", "mse", *map(str, more)]


def test_the_command_line_refines_a_box_from_text_or_file(
    pair: PhantomPair, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = np.array([mark["fixed"] for mark in landmarks(pair)])
    fixed, moving = PointSet(points), PointSet(pair.truth(points))
    write_roi(RegionOfInterest(np.array([5.0, -5, 5]), np.full(3, 20.0)), tmp_path / "box.mrk.json")
    write_point_pairs(fixed, moving, tmp_path / "pairs.csv")
    box = "-15,-25,-15,25,15,25"
    assert main(arguments(files, tmp_path / "text", "--roi", box)) == 0
    printed = capsys.readouterr()
    assert "1 region" in printed.out and printed.err == ""
    assert sorted(path.name for path in (tmp_path / "text").iterdir()) == sorted(OUTPUTS)
    more = ["--roi", tmp_path / "box.mrk.json", "--points", tmp_path / "pairs.csv", "--exact", "--quiet"]
    assert main(arguments(files, tmp_path / "file", *more)) == 0
    assert capsys.readouterr() == ("", "")
    reached = read_transform(tmp_path / "file" / "transform.h5").transform_points(points)  # type: ignore[attr-defined]
    assert np.linalg.norm(reached - moving.points, axis=1).max() < 0.1
    steps = [
        json.loads((tmp_path / name / "report.json").read_text())["details"]["refinement"]["steps"]
        for name in ("text", "file")
    ]
    assert [step["kind"] for step in steps[1]] == ["region", "exact"]
    np.testing.assert_allclose(steps[0][0]["center"], steps[1][0]["center"], atol=1e-6)


def test_the_command_line_refuses_mistakes_with_one_line(
    pair: PhantomPair, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = np.array([mark["fixed"] for mark in landmarks(pair)])
    write_points(PointSet(points), tmp_path / "fixed.csv")
    write_points(PointSet(pair.truth(points)[:2]), tmp_path / "moving.csv")
    two = ["--fixed-points", tmp_path / "fixed.csv"]

    def sentence(status: int, *more: str | Path) -> str:
        return refused(arguments(files, tmp_path / "out", *more), status, tmp_path, capsys)

    assert "nothing to refine" in sentence(2)
    assert "both --fixed-points and --moving-points" in sentence(2, *two)
    assert "they must correspond" in sentence(3, *two, "--moving-points", tmp_path / "moving.csv")
    assert "is not a box" in sentence(3, "--roi", "1,2,3,1,5,6")
    assert "outside the fixed volume" in sentence(3, "--roi", "400,400,400,420,420,420")
    assert "there is no model named" in sentence(2, "--roi", "0,0,0,20,20,20", "--network", "no-such-model")
    without = ["refine", files["fixed"], files["moving"], "-o", tmp_path / "out", "--roi", "0,0,0,20,20,20"]
    assert "no registration to refine yet" in refused(without, 2, tmp_path, capsys)
