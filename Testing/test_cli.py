"""The command line does what the contract says, with its exit statuses and one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command_line import files_below, refused
from phantoms import PhantomPair, phantom_pair
from strategies import rotation

from SAMRegistrationLib import AffineTransform, PointSet, __version__, commands, read_transform, write_image
from SAMRegistrationLib.cli import main
from SAMRegistrationLib.errors import Cancelled
from SAMRegistrationLib.pipeline import OUTPUTS
from SAMRegistrationLib.points import read_points, write_points
from SAMRegistrationLib.presets import preset_names

START = AffineTransform.about_center(rotation((0.06, -0.04, 0.09)), (0, 0, 0), (14, -9, 20))
"""The rigid part of the phantoms' truth."""


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(4.0)


@pytest.fixture(scope="module")
def case(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the volumes, their body labels, landmarks and a rigid transform."""
    folder = tmp_path_factory.mktemp("case")
    for name, image in {"fixed": pair.fixed, "moving": pair.moving}.items():
        write_image(image, folder / f"{name}.nii.gz")
        write_image(image.with_data((image.data > -500).float()), folder / f"{name}_labels.nii.gz", "uint8")
    points = pair.inside(30)
    write_points(PointSet(points), folder / "fixed_points.csv")
    write_points(PointSet(pair.truth(points)), folder / "moving_points.csv")
    sitk.WriteTransform(START.to_sitk(), str(folder / "start.tfm"))
    return folder


def python(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def register_arguments(case: Path, output: Path, *more: str) -> list[str]:
    volumes = [str(case / "fixed.nii.gz"), str(case / "moving.nii.gz")]
    return ["register", *volumes, "-o", str(output), "--model", "mind", *more]


def test_register_writes_the_four_files_and_prints_the_report(
    case: Path, pair: PhantomPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result"
    assert main(register_arguments(case, output, "--preset", "message-passing", "--seed", "4")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "message_passing" in printed.out and "message-passing" in printed.out
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["result", *OUTPUTS])
    report = json.loads((output / "report.json").read_text())
    assert report["inputs"]["fixed"]["path"].endswith("fixed.nii.gz")
    assert report["settings"]["seed"] == 4
    assert pair.error(read_transform(output / "transform.h5").transform_points).mean() < 2


def test_register_hands_masks_and_the_start_on(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = [
        *("--fixed-mask", str(case / "fixed_labels.nii.gz")),
        *("--moving-mask", str(case / "moving_labels.nii.gz")),
    ]
    arguments = register_arguments(
        case, tmp_path, "--preset", "message-passing", "--initial", str(case / "start.tfm"), "--quiet", *masks
    )
    assert main(arguments) == 0
    assert capsys.readouterr() == ("", "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["inputs"]) == {"fixed", "moving", "fixed_mask", "moving_mask", "initial"}
    assert report["details"]["align"] == {"model": "given"}


def test_evaluate_measures_landmarks_and_labels(
    case: Path, pair: PhantomPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("evaluate", "-t", case / "start.tfm", "--fixed", case / "fixed.nii.gz"),
        *("--moving", case / "moving.nii.gz", "-o", tmp_path / "found.json"),
        *("--fixed-labels", case / "fixed_labels.nii.gz", "--moving-labels", case / "moving_labels.nii.gz"),
        *("--fixed-points", case / "fixed_points.csv", "--moving-points", case / "moving_points.csv"),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    points = pair.inside(30)
    distances = np.linalg.norm(START.transform_points(points) - pair.truth(points), axis=1)
    assert found["landmarks"]["mean"]["after"]["mean_mm"] == pytest.approx(distances.mean(), abs=0.01)
    dice = found["labels"]["per_label"][0]
    assert dice["after"]["dice"] > dice["before"]["dice"]
    assert "dice" in capsys.readouterr().out.lower()


def test_apply_resamples_as_simpleitk_does(case: Path, pair: PhantomPair, tmp_path: Path) -> None:
    for name, options, interpolator, fill, kind in [
        ("moving", [], sitk.sitkLinear, -1024, sitk.sitkInt16),
        ("moving_labels", ["--labels"], sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8),
    ]:
        source, output = case / f"{name}.nii.gz", tmp_path / f"{name}.nrrd"
        arguments = [str(case / "start.tfm"), str(source), "--reference", str(case / "fixed.nii.gz")]
        assert main(["apply", *arguments, "-o", str(output), *options]) == 0
        ours = sitk.ReadImage(str(output))
        assert ours.GetPixelID() == kind
        theirs = sitk.Resample(
            sitk.ReadImage(str(source)), pair.fixed.to_sitk(), START.to_sitk(), interpolator, fill
        )
        values, expected = (sitk.GetArrayFromImage(image).astype(float) for image in (ours, theirs))
        # A border of the moving volume may be taken for inside or outside by rounding.
        assert (np.abs(values - expected) <= 1).mean() > 0.999


def test_match_finds_points_of_the_same_volume_where_they_are(
    case: Path, pair: PhantomPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.mrk.json"
    fixed = case / "fixed.nii.gz"
    arguments = [fixed, fixed, "--points", case / "fixed_points.csv", "-o", output]
    assert main(["match", *map(str, arguments)]) == 0
    distances = np.linalg.norm(read_points(output).points - pair.inside(30), axis=1)
    assert np.median(distances) < 2.0
    assert len(capsys.readouterr().out.splitlines()) >= 31


def test_match_answers_points_outside_the_volume_and_says_so(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "far.csv").write_text("x,y,z\n0,0,0\n900,0,0\n")
    fixed = case / "fixed.nii.gz"
    arguments = ["match", fixed, fixed, "--points", tmp_path / "far.csv", "-o", tmp_path / "out.csv"]
    assert main([str(argument) for argument in arguments]) == 0
    assert len(read_points(tmp_path / "out.csv")) == 2
    near, far = capsys.readouterr().out.splitlines()[-2:]
    assert "outside the fixed volume" in far and "outside" not in near


def test_match_refuses_features_that_cannot_find_points(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = case / "fixed.nii.gz"
    arguments = ["match", fixed, fixed, "--points", case / "fixed_points.csv", "-o", tmp_path / "out.csv"]
    assert "MIND" in refused([*arguments, "--model", "mind"], 2, tmp_path, capsys)


def test_presets_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == preset_names()


def test_models_lists_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.strip()


def test_doctor_tries_every_device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "device cpu: works" in printed and __version__ in printed
    monkeypatch.setattr("SAMRegistrationLib.doctor.REQUIRED", ("torch", "no-such-package"))
    assert main(["doctor"]) == 1
    assert "MISSING" in capsys.readouterr().out


def test_help_and_version_end_well(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["register", "--help"], ["models", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["register"],
        ["register", "a", "b"],
        ["register", "a", "b", "-o", "c", "--color", "red"],
        ["register", "a", "b", "-o", "c", "--seed", "many"],
        ["register", "a", "b", "-o", "c", "--preset", "fancy"],
        ["register", "a", "b", "-o", "c", "--device", "tpu"],
        ["evaluate", "--fixed", "a"],
        ["models"],
        ["models", "info", "nothing-like-this"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_use_is_one_line_and_exit_status_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(arguments, 2, tmp_path, capsys)


def test_ground_truth_for_one_volume_only_is_wrong_use(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "-t", case / "start.tfm", "--fixed", case / "fixed.nii.gz"]
    arguments += ["--moving", case / "moving.nii.gz", "--fixed-labels", case / "fixed_labels.nii.gz"]
    refused(arguments, 2, tmp_path, capsys)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Cancelled])
@pytest.mark.parametrize("stage", ["align", "finish"])
def test_an_interrupted_registration_ends_with_130_and_leaves_nothing(
    case: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interruption: type[BaseException],
    stage: str,
) -> None:
    def interrupt(_: object, name: str, __: float) -> None:
        if name == stage:
            raise interruption("cancelled; nothing was written")

    monkeypatch.setattr(commands.TerminalProgress, "__call__", interrupt)
    arguments = register_arguments(case, tmp_path / "result", "--preset", "rigid")
    assert "cancelled" in refused(arguments, 130, tmp_path, capsys)


def test_an_interrupt_while_writing_leaves_what_was_there_before(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "report.json").write_text("earlier")
    monkeypatch.setattr("SAMRegistrationLib.pipeline.write_report", interrupt)
    refused(register_arguments(case, tmp_path, "--preset", "rigid"), 130, tmp_path, capsys)
    assert (tmp_path / "report.json").read_text() == "earlier"


def test_a_bug_is_not_taken_for_a_users_mistake(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("SAMRegistrationLib.chain.run_stage", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(register_arguments(case, tmp_path / "result"))
    assert not files_below(tmp_path)


def test_the_module_is_the_command(tmp_path: Path) -> None:
    mistake = python("-m", "SAMRegistrationLib", "register", "a.nii", "b.nii", "-o", "out", folder=tmp_path)
    assert mistake.returncode == 3
    assert mistake.stdout == ""
    assert mistake.stderr.splitlines() == [mistake.stderr.strip()] and "a.nii" in mistake.stderr
    assert not files_below(tmp_path)


def test_help_and_wrong_use_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from SAMRegistrationLib.cli import main; status = main(['register']); "
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    found = python("-c", code, folder=tmp_path)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_registration_in_its_own_process_is_silent_on_stderr(case: Path, tmp_path: Path) -> None:
    done = python("-m", "SAMRegistrationLib", *register_arguments(case, Path("out")), folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)
