"""Pytest fixtures and small nodes for tests on a real MRML scene."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "SAMRegistration"
LPS = np.array([-1.0, -1.0, 1.0])
"""Factors between RAS and LPS."""


def make_module_importable() -> None:
    """Let `SAMRegistrationModule` be found, as Slicer does with a module's folder."""
    if str(MODULE_FOLDER) not in sys.path:
        sys.path.insert(0, str(MODULE_FOLDER))


@pytest.fixture
def mrml() -> Iterator[Any]:
    """The module `slicer` with an empty scene; skipped where slicer-core has no wheel."""
    pytest.importorskip("slicer", reason="slicer-core is not installed: nothing is tested on real MRML here")
    from .mrml import clear_scene, start_mrml

    slicer = start_mrml()
    make_module_importable()
    clear_scene()
    yield slicer
    clear_scene()


def add_volume(
    slicer: Any,
    array: NDArray[Any],
    spacing: ArrayLike = (1.0, 1.0, 1.0),
    origin: ArrayLike = (0.0, 0.0, 0.0),
    axes: ArrayLike | None = None,
    name: str = "volume",
    labels: bool = False,
) -> Any:
    """A volume node of an array (k, j, i); origin, and axes in columns, in RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if axes is None else np.asarray(axes)) * np.asarray(spacing)
    matrix[:3, 3] = origin
    kind = "vtkMRMLLabelMapVolumeNode" if labels else "vtkMRMLScalarVolumeNode"
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return node


def add_image(slicer: Any, image: Any, name: str = "volume", labels: bool = False) -> Any:
    """A volume node of the library's `Image`."""
    grid = image.grid
    return add_volume(
        slicer,
        image.data.numpy().astype(image.pixel_type),
        grid.spacing,
        np.asarray(grid.origin) * LPS,
        LPS[:, None] * np.asarray(grid.axes),
        name,
        labels,
    )


def add_linear(slicer: Any, matrix: ArrayLike, name: str = "linear") -> Any:
    """A linear transform node with a 4x4 matrix to its parent."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.asarray(matrix, dtype=float)))
    return node


def add_warp(slicer: Any, name: str = "warp", amplitude: float = 4.0, extent: float = 200.0) -> Any:
    """A smooth deformation, given as thin-plate spline of a few landmarks, to the parent."""
    import vtk

    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    random = np.random.default_rng(5)
    corners = np.stack(np.meshgrid(*[[-extent, 0.0, extent]] * 3), -1).reshape(-1, 3)
    for corner in corners:
        source.InsertNextPoint(*corner)
        target.InsertNextPoint(*(corner + random.uniform(-amplitude, amplitude, 3)))
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetAndObserveTransformToParent(spline)
    return node


def add_points(slicer: Any, positions: ArrayLike, labels: list[str] | None = None, name: str = "points") -> Any:
    """A list of markups at RAS positions."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for index, position in enumerate(np.asarray(positions, dtype=float)):
        node.AddControlPoint(*position.tolist(), labels[index] if labels else f"{name}-{index + 1}")
    return node


def rotation_about_z(degrees: float) -> NDArray[np.float64]:
    """A 4x4 turn about the z axis."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix
