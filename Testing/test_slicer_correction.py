"""Points and refinement by the module's logic on real MRML with a real worker, on the shipped pair of patients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless_slicer.fixtures import LPS, add_image, add_points, make_module_importable

from SAMRegistrationLib import read_image

pytest.importorskip("slicer", reason="slicer-core is not installed: nothing is tested on real MRML here")

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).resolve().parents[1] / "Resources" / "SampleData"
SPACING = 5.0


class Case:
    """The pair, registered."""

    def __init__(self, slicer: Any) -> None:
        from SAMRegistrationModule.RegistrationLogic import RegistrationLogic

        self.slicer, self.logic = slicer, RegistrationLogic()
        self.nodes = []
        for name in ("lidc0405", "lungdx0001"):
            image = read_image(SAMPLES / f"{name}.nii.gz")
            self.nodes.append(add_image(slicer, image.resampled(image.grid.resampled(SPACING)), name))
        self.transform = self.logic.register(*self.nodes, preset="message-passing")
        size = np.array(self.nodes[0].GetImageData().GetDimensions())
        matrix = slicer.util.arrayFromVTKMatrix(self._matrix())
        ijk = np.random.default_rng(1).uniform(0.35, 0.65, (12, 3)) * (size - 1)
        self.points = ijk @ matrix[:3, :3].T + matrix[:3, 3]

    def _matrix(self) -> Any:
        import vtk

        matrix = vtk.vtkMatrix4x4()
        self.nodes[0].GetIJKToRASMatrix(matrix)
        return matrix

    def mapped(self, points: np.ndarray) -> np.ndarray:
        from SAMRegistrationModule.Geometry import transformPoints

        return transformPoints(self.transform.GetTransformFromParent(), points)


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    from headless_slicer.mrml import clear_scene, start_mrml

    slicer = start_mrml()
    make_module_importable()
    clear_scene()
    case = Case(slicer)
    yield case
    case.logic.close()
    clear_scene()


def test_points_are_found_where_the_registration_puts_them(case: Case) -> None:
    matched, found = case.logic.matchPoints(*case.nodes, case.points, transformNode=case.transform)
    gap = np.linalg.norm(matched - case.mapped(case.points), axis=1)
    assert np.median(gap) < 25.0
    for name in ("score", "support", "cycle_mm", "reason"):
        assert len(found[name]) == len(case.points)
    again, _ = case.logic.matchPoints(*case.nodes, case.points[:1], transformNode=case.transform)
    assert np.linalg.norm(again[0] - matched[0]) < 10.0


def test_a_heat_map_is_hottest_where_the_point_is_found(case: Case) -> None:
    node = case.logic.heatMap(*case.nodes, case.points[0], transformNode=case.transform)
    array = case.slicer.util.arrayFromVolume(node)
    assert array.shape == case.slicer.util.arrayFromVolume(case.nodes[1]).shape
    assert 0.2 < array.max() <= 1.0 and array.min() < array.max() - 0.3
    same = case.logic.heatMap(*case.nodes, case.points[1], node, transformNode=case.transform)
    assert same is node


def test_a_box_is_refined_and_the_rest_stays(case: Case) -> None:
    roi = case.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    roi.SetCenter(*case.points[0].tolist())
    roi.SetSize(50, 50, 50)
    far = case.points[np.abs(case.points - case.points[0]).max(axis=1) > 60]
    inside = case.points[0] + np.random.default_rng(2).uniform(-20, 20, (50, 3))
    before = case.mapped(inside), case.mapped(far)
    reports: list[dict] = []
    job = case.logic.refine(
        case.transform,
        *case.nodes,
        regions=[roi],
        iterations=40,
        margin=15.0,
        onDone=lambda _, found: reports.append(found),
    )
    case.logic.worker.waitUntil(lambda: job.isDone)
    assert job.error is None and job.result is case.transform
    (region,) = reports[0]["regions"]
    assert region["rmse_after"] < region["rmse_before"] and len(region["loss"]) == 40
    changed, kept = case.mapped(inside) - before[0], case.mapped(far) - before[1]
    assert np.linalg.norm(changed, axis=1).mean() > 0.1
    assert len(far) and np.linalg.norm(kept, axis=1).mean() < 0.05
    case.logic.undo()
    assert case.mapped(inside) == pytest.approx(before[0], abs=1e-6)


def test_landmarks_meet_after_a_refinement_with_them(case: Case) -> None:
    fixed = case.points[:8]
    moving = case.mapped(fixed) + np.random.default_rng(3).normal(0, 3, fixed.shape)
    lists = [add_points(case.slicer, places, [f"p{n}" for n in range(8)]) for places in (fixed, moving)]
    node = case.logic.refine(
        case.transform, *case.nodes, fixedLandmarks=lists[0], movingLandmarks=lists[1], exact=True, iterations=40
    )
    errors = np.linalg.norm(case.mapped(fixed) - moving, axis=1)
    assert node is case.transform and errors.mean() < 1.0
    case.logic.undo()


def test_a_refinement_before_any_registration_says_so(case: Case) -> None:
    from SAMRegistrationModule.Geometry import InputProblem

    empty = case.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "empty")
    with pytest.raises(InputProblem, match="Register first"):
        case.logic.refine(empty, *case.nodes)
    with pytest.raises(InputProblem, match="Draw a box"):
        case.logic.refine(case.transform, *case.nodes)


def test_a_comparison_tells_a_place_within_the_fixed_volume(case: Case) -> None:
    found = case.logic.compare(case.transform, *case.nodes, ["difference", "jacobian"])
    assert set(found.images) == {"difference", "jacobian"} and found.limit > 0
    bounds = np.zeros(6)
    case.nodes[0].GetRASBounds(bounds)
    place = np.array(found.worst) * LPS
    assert (place >= bounds[::2]).all() and (place <= bounds[1::2]).all()
    assert "Here the" in found.sentence
