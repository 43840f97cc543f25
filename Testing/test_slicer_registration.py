"""Registration by the module's logic on real MRML with a real worker: what nodes become under the result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from headless_slicer.fixtures import LPS, add_image, add_points, add_volume, make_module_importable
from phantoms import centered_grid, phantom_pair
from scipy.ndimage import maximum_filter

from SAMRegistrationLib import Image, read_image, register

pytest.importorskip("slicer", reason="slicer-core is not installed: nothing is tested on real MRML here")

pytestmark = pytest.mark.slow

PRESET, FEATURES = "message-passing", "mind"
EVERYTHING = {name: True for name in ("warped", "inverse", "jacobian", "displacement", "report")}
CUBIC = 2
RANDOM = np.random.default_rng(3)


@dataclass
class Registered:
    """A pair registered once, all outputs, and the files that the worker wrote."""

    slicer: Any
    logic: Any
    positions: np.ndarray
    fixed: Any
    moving: Any
    node: Any
    files: Path
    inputs: tuple[Path, Path]

    @property
    def truth(self) -> sitk.Transform:
        """What SimpleITK says: from fixed to moving, LPS."""
        return sitk.ReadTransform(str(self.files / "transform.h5"))

    def moved(self, ras: np.ndarray) -> np.ndarray:
        """Where SimpleITK puts positions of the fixed world, RAS."""
        return np.array([self.truth.TransformPoint((p * LPS).tolist()) for p in ras]) * LPS

    def output(self, name: str) -> Any:
        return self.slicer.util.getNode(f"moving {name}")


def phantoms(_: pytest.FixtureRequest) -> tuple[Image, Image, np.ndarray]:
    """A turned and deformed phantom: fixed, moving, and positions within the fixed body (LPS)."""
    pair = phantom_pair(spacing=5.0, fixed_grid=centered_grid(5.0, angles=(0.1, 0.2, -0.15)))
    return pair.fixed, pair.moving, pair.inside(60)


def patients(request: pytest.FixtureRequest) -> tuple[Image, Image, np.ndarray]:
    """The heads of two patients, cropped and made coarser."""
    folder = request.getfixturevalue("data_dir") / "headneck_openkbp"
    images = []
    for name in ("okbp_003", "okbp_004"):
        image = read_image(folder / f"{name}.nii.gz")
        grid = image.grid.resampled(4.0)
        margins = [max(0, (size - 30) // 2) for size in grid.size]
        grid = grid.cropped(margins, [size - margin for size, margin in zip(grid.size, margins, strict=True)])
        images.append(image.resampled(grid))
    fixed = images[0].grid
    shares = np.random.default_rng(4).uniform(0.2, 0.8, (60, 3))
    return *images, fixed.to_world(shares * (np.array(fixed.size) - 1))


@pytest.fixture(
    scope="module", params=[phantoms, pytest.param(patients, marks=pytest.mark.data)], ids=lambda f: f.__name__
)
def registered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    """A pair registered by a worker process; the scene stays for all tests here."""
    from headless_slicer.mrml import clear_scene, start_mrml

    slicer = start_mrml()
    make_module_importable()
    clear_scene()
    from SAMRegistrationModule.RegistrationLogic import RegistrationLogic

    kept = tmp_path_factory.mktemp("job") / "result"
    logic = RegistrationLogic()
    remove = logic.folders.remove

    def keep(job: Path) -> None:
        if not kept.exists() and (job / "result").exists():
            shutil.copytree(job / "result", kept)
        remove(job)

    logic.folders.remove = keep
    fixed_image, moving_image, positions = request.param(request)
    fixed, moving = add_image(slicer, fixed_image, "fixed"), add_image(slicer, moving_image, "moving")
    node = logic.register(fixed, moving, PRESET, model=FEATURES, outputs=EVERYTHING)
    inputs = logic.folders.volumeFile(fixed)[0], logic.folders.volumeFile(moving, node)[0]
    yield Registered(slicer, logic, positions * LPS, fixed, moving, node, kept, inputs)
    logic.close()
    clear_scene()


def body_points(registered: Registered, count: int = 60) -> np.ndarray:
    """Positions within the fixed body, RAS."""
    return registered.positions[:count]


def test_the_result_is_one_transform_node_and_no_job_is_left(registered: Registered) -> None:
    assert registered.node.GetClassName() == "vtkMRMLTransformNode"
    grid = registered.node.GetTransformFromParentAs("vtkOrientedGridTransform", False, False)
    assert grid.GetInterpolationMode() == CUBIC, "Slicer reads every field so"
    assert max(grid.GetDisplacementGrid().GetSpacing()) <= 2.0
    assert not [path for path in registered.logic.folders.folder.iterdir() if path.is_dir()]


def test_points_go_where_simpleitk_puts_them(registered: Registered) -> None:
    positions = body_points(registered)
    markups = add_points(registered.slicer, registered.moved(positions))
    markups.SetAndObserveTransformNodeID(registered.node.GetID())
    found = np.zeros_like(positions)
    for index, row in enumerate(found):
        markups.GetNthControlPointPositionWorld(index, row)
    registered.slicer.mrmlScene.RemoveNode(markups)
    assert np.linalg.norm(found - positions, axis=1).max() < 0.1


def test_models_go_where_simpleitk_puts_them(registered: Registered) -> None:
    import vtk

    positions = body_points(registered)
    points = vtk.vtkPoints()
    for position in registered.moved(positions):
        points.InsertNextPoint(*position)
    data = vtk.vtkPolyData()
    data.SetPoints(points)
    model = registered.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "model")
    model.SetAndObservePolyData(data)
    model.SetAndObserveTransformNodeID(registered.node.GetID())
    model.HardenTransform()
    found = np.array([model.GetPolyData().GetPoint(index) for index in range(len(positions))])
    registered.slicer.mrmlScene.RemoveNode(model)
    assert np.linalg.norm(found - positions, axis=1).max() < 0.1


def test_segmentations_go_where_simpleitk_puts_them(registered: Registered) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.Segmentations import labelsOnGrid

    slicer = registered.slicer
    mask = slicer.util.arrayFromVolume(registered.moving) > 100
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organ")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(registered.moving)
    identifier = segmentation.GetSegmentation().AddEmptySegment("organ", "organ")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), segmentation, identifier, registered.moving
    )
    segmentation.SetAndObserveTransformNodeID(registered.node.GetID())
    labels, _ = labelsOnGrid(segmentation, flattenedVolume(registered.fixed)[1])
    slicer.mrmlScene.RemoveNode(segmentation)
    moving = sitk.ReadImage(str(registered.inputs[1]))
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(moving)
    reference = sitk.ReadImage(str(registered.inputs[0]))
    expected = sitk.Resample(image, reference, registered.truth, sitk.sitkNearestNeighbor, 0)
    different = labels != sitk.GetArrayFromImage(expected)
    assert mask.sum() > 100 and different.mean() < 0.001


def test_the_registered_volume_is_voxel_for_voxel_the_one_of_the_library(registered: Registered) -> None:
    found = registered.slicer.util.arrayFromVolume(registered.output("registered"))
    assert np.array_equal(found, sitk.GetArrayFromImage(sitk.ReadImage(str(registered.files / "warped.nrrd"))))
    alone = register(*registered.inputs, preset=PRESET, model=FEATURES, device="cpu")
    assert np.array_equal(found, alone.warped.data.numpy().round().astype(found.dtype))
    assert found.shape == registered.slicer.util.arrayFromVolume(registered.fixed).shape


def test_the_volume_under_the_node_is_the_registered_volume(registered: Registered) -> None:
    from SAMRegistrationModule.Flattening import arrayOf, reslice
    from SAMRegistrationModule.Geometry import volumeGeometry

    moving, fixed = registered.moving, volumeGeometry(registered.fixed)
    from_fixed = registered.node.GetTransformFromParent()
    own = volumeGeometry(moving).ijkToRAS
    seen = arrayOf(reslice(moving.GetImageData(), own, from_fixed, fixed, False, -1024.0)).astype(float)
    warped = registered.slicer.util.arrayFromVolume(registered.output("registered")).astype(float)
    # The node follows the map to a tenth of a millimeter, which matters where the volume is steep.
    inner = (slice(2, -2),) * 3
    gap = np.abs(seen - warped)[inner]
    slope = np.linalg.norm(np.gradient(warped, *fixed.spacing[::-1]), axis=0)
    near = maximum_filter(slope, 3)[inner]
    assert (gap <= 2 + 0.15 * near).mean() > 0.999 and gap.mean() < 2


def test_the_inverse_node_leads_back(registered: Registered) -> None:
    from SAMRegistrationModule.Geometry import transformPoints

    positions = body_points(registered)
    inverse = registered.output("registration inverse").GetTransformFromParent()
    back = transformPoints(inverse, registered.moved(positions))
    assert np.linalg.norm(back - positions, axis=1).max() < 0.1


def test_the_maps_of_displacement_and_determinant_tell_the_truth(registered: Registered) -> None:
    slicer = registered.slicer
    field = sitk.ReadImage(str(registered.files / "displacement.nrrd"))
    magnitude = slicer.util.arrayFromVolume(registered.output("displacement magnitude"))
    expected = np.linalg.norm(sitk.GetArrayFromImage(field), axis=-1)
    assert magnitude == pytest.approx(expected, abs=1e-3)
    determinant = slicer.util.arrayFromVolume(registered.output("Jacobian determinant"))
    axes = np.array(field.GetDirection()).reshape(3, 3)
    for index in RANDOM.integers(2, np.array(field.GetSize()) - 2, (30, 3)):
        position = np.array(field.TransformIndexToPhysicalPoint(index.tolist()))
        steps = [spacing * axes[:, axis] for axis, spacing in enumerate(field.GetSpacing())]
        ends = [
            [registered.truth.TransformPoint((position + sign * step).tolist()) for sign in (1, -1)]
            for step in steps
        ]
        differences = np.array([np.subtract(*pair) for pair in ends]) / (2 * np.array(field.GetSpacing()))[:, None]
        expected_here = np.linalg.det(differences.T @ axes.T)
        assert determinant[tuple(index[::-1])] == pytest.approx(expected_here, abs=1e-3)


def test_the_report_is_a_table(registered: Registered) -> None:
    table = registered.output("registration report").GetTable()
    rows = {
        table.GetValue(row, 0).ToString(): table.GetValue(row, 1).ToString()
        for row in range(table.GetNumberOfRows())
    }
    assert rows["preset"] == PRESET
    assert float(rows["normalized cross correlation, after"]) > float(rows["normalized cross correlation, before"])


def test_outputs_refer_to_what_was_registered(registered: Registered) -> None:
    role = registered.slicer.vtkMRMLTransformNode
    for name in ("registration", "registration inverse", "registered", "Jacobian determinant"):
        node = registered.output(name)
        assert node.GetNodeReference(role.GetFixedNodeReferenceRole()) is registered.fixed
        assert node.GetNodeReference(role.GetMovingNodeReferenceRole()) is registered.moving


@pytest.mark.parametrize("suffix", [".h5", ".nrrd"])
def test_a_saved_transform_reads_back_the_same(registered: Registered, tmp_path: Path, suffix: str) -> None:
    from SAMRegistrationModule.Geometry import transformPoints
    from SAMRegistrationModule.TransformNodes import fieldOf, gridGeometry

    slicer = registered.slicer
    nodes = [registered.node, slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "read")]
    for node, action in zip(nodes, ("WriteData", "ReadData"), strict=True):
        storage = slicer.vtkMRMLTransformStorageNode()
        storage.SetFileName(str(tmp_path / f"result{suffix}"))
        assert getattr(storage, action)(node)
    grids = [node.GetTransformFromParentAs("vtkOrientedGridTransform", False, False) for node in nodes]
    slicer.mrmlScene.RemoveNode(nodes[1])
    positions = body_points(registered)
    maps = [transformPoints(grid, positions) for grid in grids]
    assert maps[1] == pytest.approx(maps[0], abs=1e-4), "it is also interpolated as before"
    assert np.abs(fieldOf(grids[1]) - fieldOf(grids[0])).max() < 1e-4
    assert gridGeometry(grids[1]).ijkToRAS == pytest.approx(gridGeometry(grids[0]).ijkToRAS, abs=1e-5)
    itk = sitk.ReadTransform(str(tmp_path / f"result{suffix}")) if suffix != ".nrrd" else None
    for position in body_points(registered, 20) if itk else ():
        expected = registered.moved(position[None])[0]
        assert np.array(itk.TransformPoint((position * LPS).tolist())) * LPS == pytest.approx(expected, abs=0.1)


def test_a_saved_scene_holds_the_same_map(registered: Registered, tmp_path: Path) -> None:
    from SAMRegistrationModule.Geometry import transformPoints

    slicer = registered.slicer
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    shutil.unpack_archive(tmp_path / "scene.mrb", tmp_path / "scene", "zip")
    scene = slicer.vtkMRMLScene()
    scene.SetURL(str(next((tmp_path / "scene").rglob("*.mrml"))))
    assert scene.Import()
    read = scene.GetFirstNodeByName("moving registration")
    positions = body_points(registered)
    found = transformPoints(read.GetTransformFromParent(), positions)
    assert found == pytest.approx(transformPoints(registered.node.GetTransformFromParent(), positions), abs=1e-4)
    inverse = scene.GetFirstNodeByName("moving registration inverse").GetTransformFromParent()
    assert np.linalg.norm(transformPoints(inverse, found) - positions, axis=1).max() < 0.1


def test_another_preset_reuses_the_embeddings_and_updates_the_node(registered: Registered) -> None:
    from SAMRegistrationModule.Geometry import transformPoints

    logic, slicer = registered.logic, registered.slicer
    positions = body_points(registered)

    def mapped() -> np.ndarray:
        return transformPoints(registered.node.GetTransformFromParent(), positions)

    before = mapped()
    counts = []
    names = set(slicer.util.getNodes())
    for preset in ("affine", "rigid"):
        job = logic.register(
            registered.fixed,
            registered.moving,
            preset,
            outputs={"transform": registered.node},
            onDone=lambda _, report: counts.append(report["details"]["embeddings"]),
        )
        logic.worker.waitUntil(lambda job=job: job.isDone)
        assert job.error is None and job.result is registered.node
    assert set(slicer.util.getNodes()) == names, "a node was added"
    # Both volumes as they are stored; what each preset sees under its own map, and how often it looks, is its own.
    assert counts[0]["reused"] == 0 and counts[1]["reused"] >= 2
    rigid = mapped()
    logic.undo()
    affine = mapped()
    assert np.linalg.norm(affine - rigid, axis=1).max() > 0.01
    logic.undo()
    assert mapped() == pytest.approx(rigid, abs=1e-9)
    registered.logic.register(
        registered.fixed, registered.moving, PRESET, model=FEATURES, outputs={"transform": registered.node}
    )
    assert mapped() == pytest.approx(before, abs=1e-3), "the same settings give the same result"


def test_a_moving_volume_under_its_result_is_registered_as_it_was(registered: Registered) -> None:
    from SAMRegistrationModule.TransformNodes import applyToMoving, removeFromMoving

    moving_grid = read_image(registered.logic.folders.volumeFile(registered.moving, registered.node)[0]).grid
    applyToMoving(registered.moving, registered.node)
    try:
        path, _ = registered.logic.folders.volumeFile(registered.moving, registered.node)
        assert np.array_equal(read_image(path).data, registered.slicer.util.arrayFromVolume(registered.moving))
        assert read_image(path).grid.isclose(moving_grid)
    finally:
        removeFromMoving(registered.moving, registered.node)
    assert registered.moving.GetParentTransformNode() is None


def test_evaluation_makes_a_table_and_a_plot(registered: Registered) -> None:
    slicer = registered.slicer
    positions = body_points(registered, 5)
    truth = registered.moved(positions)
    fixed_points, moving_points = (
        add_points(slicer, positions, list("abcde")),
        add_points(slicer, truth, list("abcde")),
    )
    labels = [
        add_volume(
            slicer,
            (slicer.util.arrayFromVolume(v) > 100).astype(np.int16),
            labels=True,
            name=f"{v.GetName()} labels",
        )
        for v in (registered.fixed, registered.moving)
    ]
    import vtk

    for volume, label in zip((registered.fixed, registered.moving), labels, strict=True):
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        label.SetIJKToRASMatrix(matrix)
    table = registered.logic.evaluate(
        registered.node,
        registered.fixed,
        registered.moving,
        fixedLabels=labels[0],
        movingLabels=labels[1],
        fixedLandmarks=fixed_points,
        movingLandmarks=moving_points,
    )
    rows = [[table.GetTable().GetValue(r, c).ToString() for c in range(4)] for r in range(table.GetNumberOfRows())]
    dice = next(row for row in rows if row[:2] == ["mean of labels", "Dice"])
    assert float(dice[3]) > float(dice[2])
    errors = [row for row in rows if row[1].startswith("landmark error")]
    assert [row[0] for row in errors[:5]] == list("abcde")
    assert float(errors[5][3]) < 3 < float(errors[5][2])
    chart = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")[-1]
    assert chart.GetNumberOfPlotSeriesNodes() == 2
    for node in (fixed_points, moving_points, *labels):
        slicer.mrmlScene.RemoveNode(node)


def test_masks_and_landmarks_reach_the_worker(registered: Registered) -> None:
    slicer = registered.slicer
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    bounds = np.zeros(6)
    registered.fixed.GetBounds(bounds)
    box.SetCenter(*bounds.reshape(3, 2).mean(axis=1))
    box.SetSize(*(0.8 * (bounds[1::2] - bounds[::2])))
    positions = body_points(registered, 6)
    landmarks = add_points(slicer, positions), add_points(slicer, registered.moved(positions))
    reports: list[dict] = []
    job = registered.logic.register(
        registered.fixed,
        registered.moving,
        PRESET,
        model=FEATURES,
        fixedMask=box,
        fixedLandmarks=landmarks[0],
        movingLandmarks=landmarks[1],
        onDone=lambda _, report: reports.append(report),
    )
    registered.logic.worker.waitUntil(lambda: job.isDone)
    assert job.error is None
    assert set(reports[0]["inputs"]) == {"fixed", "moving", "fixed_mask", "initial"}
    for node in (box, *landmarks, job.result):
        slicer.mrmlScene.RemoveNode(node)
