"""The MRML adapter on real MRML nodes: what leaves the scene is where it was seen, what comes back is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from headless_slicer.fixtures import (
    LPS,
    add_linear,
    add_points,
    add_volume,
    add_warp,
    mrml,
    rotation_about_z,
)

from SAMRegistrationLib import read_image, read_transform
from SAMRegistrationLib.points import read_points
from SAMRegistrationLib.roi import read_roi

__all__ = ["mrml"]

RANDOM = np.random.default_rng(7)


def smooth_array(shape: tuple[int, int, int] = (18, 20, 22)) -> np.ndarray:
    """Values that vary slowly, so that interpolation hardly errs."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return (300 * np.exp(-2 * (k**2 + 0.5 * j**2 + 0.7 * i**2)) + 40 * k + 20 * j - 30 * i).astype(np.float32)


def tilted_volume(slicer: Any, name: str = "volume") -> Any:
    axes = rotation_about_z(20)[:3, :3] @ np.diag([-1, -1, 1])
    return add_volume(slicer, smooth_array(), (2.0, 2.5, 3.0), (30.0, 22.0, -20.0), axes, name)


def world_value(slicer: Any, volume: Any, ras: np.ndarray) -> float:
    """The value seen at a world position, by MRML's own maps and plain trilinear interpolation."""
    import vtk

    from_world = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, volume.GetParentTransformNode(), from_world)
    local = from_world.TransformPoint(ras)
    matrix = vtk.vtkMatrix4x4()
    volume.GetRASToIJKMatrix(matrix)
    i, j, k = matrix.MultiplyPoint([*local, 1.0])[:3]
    array = slicer.util.arrayFromVolume(volume)
    low = np.floor([k, j, i]).astype(int)
    share = np.array([k, j, i]) - low
    if (low < 0).any() or (low + 1 >= array.shape).any():
        return float("nan")
    cell = array[tuple(slice(n, n + 2) for n in low)].astype(float)
    for axis in range(3):
        cell = cell[0] * (1 - share[axis]) + cell[1] * share[axis]
    return float(cell)


def chain(slicer: Any, kind: str) -> Any:
    """The innermost transform node of a chain of parents."""
    inner = add_linear(slicer, rotation_about_z(15), "inner")
    if kind == "sheared":
        matrix = np.eye(4)
        matrix[0, 1] = 0.2
        outer = add_linear(slicer, matrix, "outer")
    elif kind == "warped":
        outer = add_warp(slicer)
    else:
        matrix = np.diag([1.0, 1.0, 1.0, 1.0])
        matrix[:3, 3] = [5, -7, 11]
        outer = add_linear(slicer, matrix, "outer")
    inner.SetAndObserveTransformNodeID(outer.GetID())
    return inner


def test_a_volume_reaches_the_library_with_its_values_and_place(mrml: Any, tmp_path: Path) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.VolumeFiles import readVolumeFile, writeVolumeFile

    volume = tilted_volume(mrml)
    path = writeVolumeFile(tmp_path / "v.nrrd", *flattenedVolume(volume))
    image = read_image(path)
    assert np.array_equal(image.data.numpy(), mrml.util.arrayFromVolume(volume))
    corner = np.array([*image.grid.to_world(np.array([3.0, 4.0, 5.0]))]) * LPS
    matrix = mrml.util.arrayFromVTKMatrix(_ijk_to_ras(volume))
    assert corner == pytest.approx((matrix @ [3, 4, 5, 1])[:3])
    back, back_matrix = readVolumeFile(path)
    assert mrml.util.arrayFromVTKMatrix(back_matrix) == pytest.approx(matrix, abs=1e-6)
    assert back.GetDimensions() == volume.GetImageData().GetDimensions()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_every_voxel_type_survives_the_file(mrml: Any, tmp_path: Path, dtype: str) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.VolumeFiles import writeVolumeFile

    array = RANDOM.integers(0, 100, (5, 6, 7)).astype(dtype)
    volume = add_volume(mrml, array)
    written = sitk.ReadImage(str(writeVolumeFile(tmp_path / "v.nrrd", *flattenedVolume(volume))))
    assert np.array_equal(sitk.GetArrayFromImage(written), array)
    assert sitk.GetArrayFromImage(written).dtype == dtype


@pytest.mark.parametrize("kind", ["moved", "sheared", "warped"])
def test_every_chain_of_parents_is_flattened(mrml: Any, tmp_path: Path, kind: str) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.VolumeFiles import writeVolumeFile

    volume = tilted_volume(mrml)
    volume.SetAndObserveTransformNodeID(chain(mrml, kind).GetID())
    image = sitk.ReadImage(str(writeVolumeFile(tmp_path / "v.nrrd", *flattenedVolume(volume))), sitk.sitkFloat32)
    compared = 0
    for index in RANDOM.uniform(2, np.array(image.GetSize()) - 3, (60, 3)):
        position = np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))
        expected = world_value(mrml, volume, position * LPS)
        if np.isfinite(expected):
            compared += 1
            found = image.EvaluateAtPhysicalPoint(position.tolist())
            assert found == pytest.approx(expected, abs=0.01 if kind == "moved" else 5)
    assert compared > 20
    original = mrml.util.arrayFromVolume(volume)
    if kind == "moved":
        assert np.array_equal(sitk.GetArrayFromImage(image), original)


def test_the_result_of_an_earlier_run_is_left_out_of_the_chain(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume

    volume = tilted_volume(mrml)
    result, own = add_linear(mrml, rotation_about_z(30), "result"), add_linear(mrml, rotation_about_z(10), "own")
    volume.SetAndObserveTransformNodeID(own.GetID())
    _, alone = flattenedVolume(volume)
    own.SetAndObserveTransformNodeID(result.GetID())
    assert flattenedVolume(volume, ignoring=result)[1].ijkToRAS == pytest.approx(alone.ijkToRAS)
    assert flattenedVolume(volume)[1].ijkToRAS != pytest.approx(alone.ijkToRAS)


def test_color_and_empty_volumes_are_refused_with_advice(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.Geometry import InputProblem

    empty = mrml.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    with pytest.raises(InputProblem, match='"nothing" is empty; load it'):
        flattenedVolume(empty)
    color = mrml.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "color")
    mrml.util.updateVolumeFromArray(color, np.zeros((4, 5, 6, 3), np.uint8))
    with pytest.raises(InputProblem, match="3 numbers per voxel; convert"):
        flattenedVolume(color)


def _segmentation(slicer: Any, reference: Any, parts: dict[str, np.ndarray]) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    for name, mask in parts.items():
        identifier = node.GetSegmentation().AddEmptySegment(name, name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, identifier, reference)
    return node


def _parts(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    left, right = np.zeros(shape, bool), np.zeros(shape, bool)
    left[4:12, 5:12, 3:9] = True
    right[6:15, 8:17, 12:19] = True
    return {"left": left, "right": right}


def test_segments_become_the_labels_that_their_names_ask_for(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.Segmentations import labelsOnGrid

    volume = tilted_volume(mrml)
    array, geometry = flattenedVolume(volume)
    parts = _parts(array.shape)
    segmentation = _segmentation(mrml, volume, parts)
    labels, meaning = labelsOnGrid(segmentation, geometry)
    assert meaning == {1: "left", 2: "right"}
    assert np.array_equal(labels, parts["left"] * 1 + parts["right"] * 2)
    labels, meaning = labelsOnGrid(segmentation, geometry, names=["right"])
    assert meaning == {1: "right"} and np.array_equal(labels, parts["right"] * 1)


def test_a_segmentation_follows_its_own_parents(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.Segmentations import labelsOnGrid

    volume = tilted_volume(mrml)
    array, _ = flattenedVolume(volume)
    segmentation = _segmentation(mrml, volume, _parts(array.shape))
    still, _ = labelsOnGrid(segmentation, flattenedVolume(volume)[1])
    both = chain(mrml, "moved")
    for node in (volume, segmentation):
        node.SetAndObserveTransformNodeID(both.GetID())
    moved, _ = labelsOnGrid(segmentation, flattenedVolume(volume)[1])
    assert np.array_equal(moved, still)


def test_a_label_map_on_another_grid_is_read_by_its_place(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.Segmentations import labelsOnGrid

    volume = add_volume(mrml, smooth_array(), (2.0, 2.0, 2.0))
    labels = np.zeros((9, 10, 11), np.int16)
    labels[3:6, 3:6, 3:6] = 3
    node = add_volume(mrml, labels, (4.0, 4.0, 4.0), (1.0, 1.0, 1.0), labels=True)
    found, _ = labelsOnGrid(node, flattenedVolume(volume)[1])
    expected = np.zeros_like(found)
    expected[6:12, 6:12, 6:12] = 3
    assert np.array_equal(found, expected)


def test_masks_beside_their_volume_are_refused(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.Geometry import InputProblem
    from SAMRegistrationModule.Segmentations import labelsOnGrid

    volume = add_volume(mrml, smooth_array())
    node = add_volume(mrml, np.ones((4, 4, 4), np.int16), origin=(500, 0, 0), labels=True, name="far")
    with pytest.raises(InputProblem, match='Nothing of "far" lies inside'):
        labelsOnGrid(node, flattenedVolume(volume)[1])


def _turned_roi(slicer: Any) -> Any:
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    roi.SetSize(10.0, 20.0, 14.0)
    matrix = rotation_about_z(25)
    matrix[:3, 3] = [6, -4, 9]
    roi.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return roi


@pytest.mark.parametrize("parents", ["none", "moved"])
def test_a_turned_box_reaches_the_library_as_the_same_box(mrml: Any, tmp_path: Path, parents: str) -> None:
    from SAMRegistrationModule.Markups import regionBox, writeRegionFile

    roi = _turned_roi(mrml)
    if parents == "moved":
        roi.SetAndObserveTransformNodeID(chain(mrml, "moved").GetID())
    region = read_roi(writeRegionFile(tmp_path / "box.mrk.json", *regionBox(roi)))
    to_world = mrml.util.arrayFromVTKMatrix(roi.GetObjectToWorldMatrix())
    expected = sorted(
        tuple(np.round((to_world @ [x * 5, y * 10, z * 7, 1])[:3] * LPS, 6))
        for x in (-1, 1)
        for y in (-1, 1)
        for z in (-1, 1)
    )
    found = sorted(tuple(np.round(corner, 6)) for corner in region.corners())
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-4)


def test_a_box_as_mask_marks_the_voxels_inside(mrml: Any) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume, voxelPositions
    from SAMRegistrationModule.Segmentations import labelsOnGrid

    volume = tilted_volume(mrml)
    roi = _turned_roi(mrml)
    _, geometry = flattenedVolume(volume)
    labels, _ = labelsOnGrid(roi, geometry)
    positions = voxelPositions(geometry)
    inverse = np.linalg.inv(mrml.util.arrayFromVTKMatrix(roi.GetObjectToWorldMatrix()))
    own = positions @ inverse[:3, :3].T + inverse[:3, 3]
    expected = (np.abs(own) <= np.array([5, 10, 7]) + 1e-3).all(axis=1).reshape(labels.shape)
    assert labels.any() and np.array_equal(labels > 0, expected)


def test_a_box_under_a_deformation_holds_what_it_became(mrml: Any) -> None:
    from SAMRegistrationModule.Geometry import toWorldTransform
    from SAMRegistrationModule.Markups import regionBox

    roi = _turned_roi(mrml)
    roi.SetAndObserveTransformNodeID(add_warp(mrml).GetID())
    center, axes, size = regionBox(roi)
    own = mrml.util.arrayFromVTKMatrix(roi.GetObjectToNodeMatrix())
    to_world = toWorldTransform(roi)
    for inside in RANDOM.uniform(-1, 1, (50, 3)) * [5, 10, 7]:
        moved = np.array(to_world.TransformPoint((own @ [*inside, 1])[:3]))
        assert (np.abs((moved - center) @ axes) <= size / 2 + 0.05).all()


@pytest.mark.parametrize("kind", ["moved", "warped"])
def test_points_reach_the_library_where_they_are_seen(mrml: Any, tmp_path: Path, kind: str) -> None:
    from SAMRegistrationModule.Markups import markupPoints, writePointsFile

    points = add_points(mrml, RANDOM.uniform(-40, 40, (6, 3)), ["a", "b", "c", "d", "e", "f"])
    points.SetAndObserveTransformNodeID(chain(mrml, kind).GetID())
    points.UnsetNthControlPointPosition(2)
    read = read_points(writePointsFile(tmp_path / "p.mrk.json", *markupPoints(points)))
    assert read.labels == ("a", "b", "d", "e", "f")
    for position, index in zip(read.points, (0, 1, 3, 4, 5), strict=True):
        seen = [0.0, 0.0, 0.0]
        points.GetNthControlPointPositionWorld(index, seen)
        assert position * LPS == pytest.approx(seen, abs=1e-3)


def test_landmarks_of_equal_names_belong_together(mrml: Any) -> None:
    from SAMRegistrationModule.Geometry import InputProblem
    from SAMRegistrationModule.LandmarkFit import fitLandmarks
    from SAMRegistrationModule.Markups import pointPairs

    positions = RANDOM.uniform(-40, 40, (4, 3))
    turn = rotation_about_z(33)
    turn[:3, 3] = [4, 5, 6]
    moved = positions @ turn[:3, :3].T + turn[:3, 3]
    fixed = add_points(mrml, positions, ["a", "b", "c", "d"])
    moving = add_points(mrml, moved[::-1], ["d", "c", "b", "a"])
    first, second, labels = pointPairs(fixed, moving)
    assert labels == ["a", "b", "c", "d"]
    assert fitLandmarks(first, second).matrix == pytest.approx(turn, abs=1e-6)
    moving.RemoveNthControlPoint(0)
    with pytest.raises(InputProblem, match=r"holds 4 points .* 3"):
        pointPairs(fixed, moving)
    with pytest.raises(InputProblem, match="on one line"):
        fitLandmarks(np.outer(np.arange(4.0), [1, 2, 3]), positions)


def linear_case(model: str, count: int, error_mm: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Landmarks of two patients between whom such a map lies: fixed, moving (with errors), and its matrix."""
    random = np.random.default_rng(count)
    matrix = rotation_about_z(25)
    scale = {"rigid": np.eye(3), "similarity": 1.2 * np.eye(3), "affine": np.diag([1.2, 0.9, 1.05])}[model]
    matrix[:3, :3] = matrix[:3, :3] @ scale
    matrix[:3, 3] = [4, -50, 6]
    fixed = random.uniform(-100, 100, (count, 3))
    moving = fixed @ matrix[:3, :3].T + matrix[:3, 3] + random.normal(0, error_mm, (count, 3))
    return fixed, moving, matrix


@pytest.mark.parametrize(("model", "count"), [("rigid", 3), ("rigid", 12), ("similarity", 7), ("affine", 12)])
def test_a_start_is_as_free_as_the_landmarks_allow(mrml: Any, model: str, count: int) -> None:
    assert mrml is not None
    from SAMRegistrationModule.LandmarkFit import fitLandmarks

    fixed, moving, matrix = linear_case(model, count, error_mm=0.0 if count == 3 else 1.0)
    fit = fitLandmarks(fixed, moving)
    assert fit.model == model and not fit.outliers
    truth = fixed @ matrix[:3, :3].T + matrix[:3, 3]
    found = fixed @ fit.matrix[:3, :3].T + fit.matrix[:3, 3]
    assert np.linalg.norm(found - truth, axis=1).mean() < 1.5
    assert f"{count} pairs" in fit.sentence(["p"] * count) and model in fit.sentence(["p"] * count)


def test_a_wrong_pair_of_landmarks_is_left_out_and_named(mrml: Any) -> None:
    assert mrml is not None
    from SAMRegistrationModule.LandmarkFit import fitLandmarks

    fixed, moving, matrix = linear_case("similarity", 9, error_mm=1.0)
    moving[4] += [60, -30, 20]
    fit = fitLandmarks(fixed, moving)
    assert fit.outliers == (4,) and '"p4"' in fit.sentence([f"p{index}" for index in range(9)])
    assert np.abs(fit.matrix[:3, :3] - matrix[:3, :3]).max() < 0.05


def test_landmarks_in_a_plane_do_not_stretch_across_it(mrml: Any) -> None:
    assert mrml is not None
    from SAMRegistrationModule.LandmarkFit import fitLandmarks

    fixed, moving, _ = linear_case("affine", 12)
    flat = fixed * [1, 1, 0]
    assert fitLandmarks(flat, moving).model != "affine"


@pytest.mark.parametrize("kind", ["moved", "warped"])
def test_a_start_means_in_the_library_what_it_does_to_the_moving_volume(
    mrml: Any, tmp_path: Path, kind: str
) -> None:
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.TransformNodes import writeInitialFile

    fixed = tilted_volume(mrml)
    node = chain(mrml, kind)
    moving = add_points(mrml, [[0, 0, 0]])
    moving.SetAndObserveTransformNodeID(node.GetID())
    _, geometry = flattenedVolume(fixed)
    start = read_transform(writeInitialFile(tmp_path, node, geometry))
    for position in geometry.surfacePoints(3):
        moved = np.zeros(3)
        moving.TransformPointFromWorld(position, moved)
        mapped = start.to_sitk().TransformPoint((position * LPS).tolist())
        assert np.array(mapped) * LPS == pytest.approx(moved, abs=1e-4 if kind == "moved" else 0.1)


def _ijk_to_ras(volume: Any) -> Any:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix
