"""Each peer's transforms mean what its adapter takes them for: a known affine map is kept, and found.

Peers that are not installed are skipped. SAMREG_PEERS_PYTHON names an interpreter that has those whose
requirements differ from ours, DEEDS_FOLDER the folder of deeds' programs.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from SAMRegistrationLib.benchmark.geometry import FloatArray, apply_matrix
from SAMRegistrationLib.benchmark.judge import transform_of_parts
from SAMRegistrationLib.benchmark.methods import METHODS, Methods
from SAMRegistrationLib.benchmark.peers.contract import NotInstalled, Outcome, Task
from SAMRegistrationLib.benchmark.peers.convex_adam import working_grid
from SAMRegistrationLib.benchmark.peers.elastix import matrix_of_parameters, start_as_parameters
from SAMRegistrationLib.benchmark.peers.greedy import from_ras, is_plausible, to_ras
from SAMRegistrationLib.benchmark.peers.niftyreg import register as register_with_niftyreg
from SAMRegistrationLib.benchmark.peers.programs import find_program
from SAMRegistrationLib.benchmark.peers.volumes import as_sitk, matrix_of, measured_mask, read_nonnegative
from SAMRegistrationLib.benchmark.processes import run_job
from SAMRegistrationLib.field import DisplacementField
from SAMRegistrationLib.grid import Grid

SIZE, SPACING = (48, 42, 36), (2.2, 2.4, 2.8)
TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""Directions of the fixed volume, so that an adapter that forgets them goes wrong."""

FOUND_WITHIN = {"plastimatch": 0.8}
"""Share of the initial error that may remain after a peer's own affine, where it is more than a third."""


class Phantom:
    """A textured body, and the same body seen from an affinely moved and turned grid.

    `matrix` maps fixed to moving world, `initial` only the centers.
    """

    def __init__(self, folder: Path) -> None:
        moving = self._body()
        center, fixed_center = self._middle(moving), np.array([-60.0, 25.0, -30.0])
        angle = np.radians(8)
        turn = np.array(
            [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        ) @ np.array([[1.04, 0.04, 0.0], [0.0, 0.97, 0.02], [0.02, 0.0, 1.03]])
        self.matrix, self.initial = np.eye(4), np.eye(4)
        self.matrix[:3, :3] = turn
        self.matrix[:3, 3] = center - turn @ fixed_center + np.array([4.0, -3.0, 5.0])
        self.initial[:3, 3] = center - fixed_center
        grid = sitk.Image(list(SIZE), sitk.sitkFloat32)
        grid.SetSpacing(SPACING)
        grid.SetDirection(TURN.ravel().tolist())
        corner = TURN @ ((np.array(SIZE) - 1) / 2 * np.array(SPACING))
        grid.SetOrigin((fixed_center - corner).tolist())
        fixed = sitk.Resample(moving, grid, as_sitk(self.matrix), sitk.sitkLinear, -1000.0)
        self.files = {}
        for name, image in (("fixed", fixed), ("moving", moving)):
            self.files[name] = folder / f"{name}.nii.gz"
            sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16), str(self.files[name]))
        inside = np.argwhere(sitk.GetArrayFromImage(fixed) > -300)[::11, ::-1]
        self.points = np.array([fixed.TransformIndexToPhysicalPoint(p) for p in inside.tolist()])

    @staticmethod
    def _body() -> sitk.Image:
        shape = tuple(reversed(SIZE))
        noise = sitk.GetImageFromArray(np.random.default_rng(3).normal(size=shape).astype(np.float32))
        texture = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 2.5))
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        values = np.where(x**2 / 0.7 + 1.7 * y**2 + 1.2 * z**2 < 1, 40 + 130 * texture / texture.std(), -1000.0)
        values[(x - 0.3) ** 2 + (y + 0.2) ** 2 + z**2 < 0.05] = 400.0
        image = sitk.GetImageFromArray(np.maximum(values, -1000).astype(np.float32))
        image.SetSpacing(SPACING)
        image.SetOrigin((15.0, -40.0, 100.0))
        return image

    @staticmethod
    def _middle(image: sitk.Image) -> FloatArray:
        return np.asarray(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in SIZE]))

    def error(self, outcome: dict[str, Any]) -> float:
        """Mean distance in mm from where the body's points belong."""
        found = transform_of_parts(outcome["parts"]).transform_points(self.points)
        return float(np.linalg.norm(found - apply_matrix(self.matrix, self.points), axis=1).mean())

    @property
    def initial_error(self) -> float:
        difference = apply_matrix(self.initial, self.points) - apply_matrix(self.matrix, self.points)
        return float(np.linalg.norm(difference, axis=1).mean())


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return Phantom(tmp_path_factory.mktemp("phantom"))


def outcome_of(
    name: str, phantom: Phantom, folder: Path, start: FloatArray | None, **settings: str
) -> dict[str, Any]:
    """What a peer leaves; skips where it is not installed in either interpreter."""
    task = {
        **{role: str(file) for role, file in phantom.files.items()},
        "initial": phantom.initial.tolist(),
        "start": None if start is None else start.tolist(),
        "same_contrast": True,
        "device": "cpu",
        "threads": 1,
        "seed": 7,
        "folder": str(folder),
    }
    method = Methods(settings={name: settings}).find(name)
    end = run_job(method, task, 600, folder / "log.txt")
    if end.status == "not installed" and "SAMREG_PEERS_PYTHON" in os.environ:
        method = replace(method, python=os.environ["SAMREG_PEERS_PYTHON"])
        end = run_job(method, task, 600, folder / "log.txt")
    if end.status == "not installed":
        pytest.skip(end.message)
    assert end.status == "done", end.message
    return json.loads((folder / "outcome.json").read_text())


DEFORMABLE = [n for n in METHODS if n not in ("initial", "sitk-affine", "elastix-affine", "greedy-affine")]
# elastix's affine does not depend on what penalty comes after it, and the penalty takes minutes.
WITH_OWN_AFFINE = [
    n for n, method in METHODS.items() if n not in ("initial", "elastix-bending") and not method.start
]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFORMABLE)
def test_a_deformable_method_stays_where_the_right_start_puts_it(
    name: str, phantom: Phantom, tmp_path: Path
) -> None:
    outcome = outcome_of(name, phantom, tmp_path, phantom.matrix)
    # Noise alone moves some of them by a fraction of a voxel; a wrong center or direction by tens of mm.
    assert phantom.error(outcome) < 1.0
    assert any("field" in part for part in outcome["parts"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sitk-affine", "elastix-bspline", "syn", "greedy", "plastimatch"])
def test_a_method_that_counts_in_a_mask_only_stays_there_too(name: str, phantom: Phantom, tmp_path: Path) -> None:
    outcome = outcome_of(name, phantom, tmp_path, phantom.matrix, mask="measured")
    assert phantom.error(outcome) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_OWN_AFFINE)
def test_a_method_with_an_affine_of_its_own_finds_most_of_a_known_map(
    name: str, phantom: Phantom, tmp_path: Path
) -> None:
    share = FOUND_WITHIN.get(name, 1 / 3)
    assert phantom.error(outcome_of(name, phantom, tmp_path, None)) < share * phantom.initial_error


@pytest.mark.parametrize("name", ["initial", "elastix-affine", "greedy-affine"])
def test_a_linear_method_gives_its_start_back(name: str, phantom: Phantom, tmp_path: Path) -> None:
    if name == "initial":
        error = phantom.error(outcome_of(name, phantom, tmp_path, None))
        assert error == pytest.approx(phantom.initial_error)
    else:
        assert phantom.error(outcome_of(name, phantom, tmp_path, phantom.matrix)) < 1e-3


def test_matrices_survive_every_peers_way_to_write_them(phantom: Phantom) -> None:
    center = (3.0, -7.0, 11.0)
    np.testing.assert_allclose(matrix_of(as_sitk(phantom.matrix, center)), phantom.matrix, atol=1e-9)
    np.testing.assert_allclose(from_ras(to_ras(phantom.matrix)), phantom.matrix, atol=1e-12)
    moved = to_ras(phantom.matrix) @ [-10.0, -20.0, 30.0, 1.0]
    np.testing.assert_allclose(moved[:3] * [-1, -1, 1], apply_matrix(phantom.matrix, np.array([10.0, 20.0, 30.0])))
    text = start_as_parameters(phantom.matrix, sitk.ReadImage(str(phantom.files["fixed"])))
    parameters = {
        line[1:-1].split(" ", 1)[0]: line[1:-1].split()[1:] for line in text.splitlines() if line.startswith("(")
    }
    np.testing.assert_allclose(matrix_of_parameters(parameters), phantom.matrix, atol=1e-6)


def test_air_is_zero_in_every_ct(tmp_path: Path) -> None:
    for lowest, expected in ((-1024, 0), (-1000, 24), (-2048, 0), (50, 0), (-20, 0)):
        values = np.full((3, 3, 3), lowest, dtype=np.int16)
        values[1, 1, 1] = 5000
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "volume.nii.gz"))
        read = sitk.GetArrayFromImage(read_nonnegative(tmp_path / "volume.nii.gz"))
        assert read.min() == expected and read.max() == 3000


def cone_beam_task(folder: Path, **settings: str) -> Task:
    """A cylinder of tissue with a dark bowel, and padding around it, which a stray voxel interrupts."""
    y, x = np.meshgrid(np.arange(40.0), np.arange(40.0), indexing="ij")
    slice_values = np.where(np.hypot(x - 20, y - 20) < 15, -200, -1000)
    values = np.repeat(slice_values[None], 8, axis=0).astype(np.int16)
    values[:, 18:22, 18:22] = -1000
    values[4, 1, 1] = 500
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(folder / "cone_beam.nii.gz"))
    return Task(folder / "cone_beam.nii.gz", folder, np.eye(4), None, folder, settings=settings)


def test_the_measured_part_of_a_cone_beam_ct_is_its_cylinder_without_padding(tmp_path: Path) -> None:
    mask = measured_mask(cone_beam_task(tmp_path, mask="measured"))
    assert mask is not None and mask.GetSpacing() == (2.0, 2.0, 3.0)
    values = sitk.GetArrayFromImage(mask)
    assert values[:, 20, 20].all() and values[:, 20, 8].all()
    assert not values[:, 20, 3].any() and not values[4, 1, 1]


def test_there_is_no_mask_but_the_one_that_is_asked_for(tmp_path: Path) -> None:
    assert measured_mask(cone_beam_task(tmp_path)) is None
    with pytest.raises(ValueError, match="measured"):
        measured_mask(cone_beam_task(tmp_path, mask="lungs"))


def test_the_working_grid_covers_the_fixed_volume_in_whole_steps() -> None:
    fixed = Grid((31, 44, 25), (4.9, 3.0, 2.5), (5.0, 6.0, 7.0), (0, 1, 0, -1, 0, 0, 0, 0, 1))
    image = sitk.Image(list(fixed.size), sitk.sitkFloat32)
    image.SetSpacing(fixed.spacing)
    image.SetOrigin(fixed.origin)
    image.SetDirection(fixed.direction)
    grid = Grid.from_sitk(working_grid(image))
    assert all(n % 6 == 0 for n in grid.size)
    assert grid.spacing == (2.0, 2.0, 2.0)
    assert grid.contains(fixed.corners() * 0.999 + fixed.center * 0.001).all()


def test_programs_are_looked_for_where_the_settings_or_the_environment_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "some_program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    with pytest.raises(NotInstalled, match="some_program is not on the path: build it"):
        find_program("some_program", None, "SOME_FOLDER", "build it")
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert find_program("some_program", None, "SOME_FOLDER", "build it") == str(program)
    nowhere = Task(tmp_path, tmp_path, np.eye(4), None, tmp_path, settings={"folder": str(tmp_path / "none")})
    with pytest.raises(NotInstalled, match="some_program is not in"):
        find_program("some_program", nowhere, "SOME_FOLDER", "build it")


FAKE_NIFTYREG = """#!{python}
import sys
import numpy as np
import SimpleITK as sitk

words = sys.argv[1:]
given = dict(zip(words, words[1:]))
name = {name!r}
if name == "reg_aladin":
    matrix = np.loadtxt(given["-inaff"])
    matrix[:3, 3] += [1.0, 2.0, 3.0]
    np.savetxt(given["-aff"], matrix)
if name == "reg_transform":
    image = sitk.ReadImage(given["-ref"])
    values = np.zeros((*image.GetSize()[::-1], 3), dtype=np.float32)
    values[...] = np.loadtxt({affine!r})[:3, 3]
    field = sitk.GetImageFromArray(values, isVector=True)
    field.CopyInformation(image)
    sitk.WriteImage(field, words[words.index("-disp") + 2])
if name == "reg_f3d":
    open({affine!r}, "w").write(open(given["-aff"]).read())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts that Windows does not start")
@pytest.mark.parametrize("with_start", [False, True])
def test_niftyreg_is_told_and_read_in_its_own_world(phantom: Phantom, tmp_path: Path, with_start: bool) -> None:
    """Stand-ins for its programs, which shift by what they are told: RAS in, RAS out."""
    for name in ("reg_aladin", "reg_f3d", "reg_transform"):
        text = FAKE_NIFTYREG.format(python=sys.executable, name=name, affine=str(tmp_path / "seen.txt"))
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shift = np.eye(4)
    shift[:3, 3] = (10.0, -4.0, 6.0)
    task = Task(
        phantom.files["fixed"],
        phantom.files["moving"],
        initial=shift,
        start=shift if with_start else None,
        folder=tmp_path,
        settings={"folder": str(tmp_path)},
    )
    outcome: Outcome = register_with_niftyreg(task)
    (file,) = outcome.parts
    field = DisplacementField.from_sitk(sitk.ReadImage(str(file)))
    own = (0.0, 0.0, 0.0) if with_start else (-1.0, -2.0, 3.0)
    np.testing.assert_allclose(field.data[0, :, 3, 4, 5].numpy(), np.add((10.0, -4.0, 6.0), own), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sitk-affine", "greedy-affine", "elastix-affine"])
def test_the_same_call_gives_the_same_result_to_the_last_digit(
    name: str, phantom: Phantom, tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = (outcome_of(name, phantom, folder, None)["parts"] for folder in folders)
    assert first == second


def test_a_linear_map_that_mirrors_or_blows_up_bodies_is_not_believed() -> None:
    stretched = np.diag([1.2, 0.9, 1.3, 1.0])
    assert is_plausible(np.eye(4)) and is_plausible(stretched)
    for factor in (-1.0, 0.3, 2.5):
        assert not is_plausible(stretched @ np.diag([factor, 1.0, 1.0, 1.0]))
