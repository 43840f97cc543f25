"""Volumes and displacements to and from files; LPS in the files, RAS in the scene."""

from pathlib import Path

import slicer
import vtk

from .Geometry import GridGeometry, InputProblem
from .Lazy import numpy as np
from .Lazy import numpySupport

_NRRD_TYPES = {
    "i1": "signed char",
    "u1": "unsigned char",
    "i2": "short",
    "u2": "unsigned short",
    "i4": "int",
    "u4": "unsigned int",
    "i8": "long long int",
    "u8": "unsigned long long int",
    "f4": "float",
    "f8": "double",
}
_RAS_TO_LPS = (-1.0, -1.0, 1.0)


def writeVolumeFile(path: Path, array, geometry: GridGeometry) -> Path:
    """Write voxels (k, j, i) with their grid as an uncompressed NRRD file.

    Raises:
        OSError: if the place cannot be written.
    """
    return _writeNrrd(path, array, geometry, array.shape[::-1], ["domain"] * 3, {})


def writeDisplacementFile(path: Path, displacement, geometry: GridGeometry) -> Path:
    """Write displacements (k, j, i, 3) in RAS mm as a NRRD vector image in LPS.

    Raises:
        OSError: if the place cannot be written.
    """
    vectors = (displacement * np.array(_RAS_TO_LPS)).astype(np.float32)
    sizes = (3, *vectors.shape[2::-1])
    return _writeNrrd(path, vectors, geometry, sizes, ["vector", *["domain"] * 3], {"intent_code": "1006"})


def writeMatrixFile(path: Path, fixedToMovingRAS) -> Path:
    """Write a 4x4 matrix from fixed to moving world (RAS) as an ITK transform file.

    Raises:
        OSError: if the place cannot be written.
    """
    flip = np.diag([*_RAS_TO_LPS, 1.0])
    matrix = flip @ fixedToMovingRAS @ flip
    numbers = " ".join(repr(float(value)) for value in [*matrix[:3, :3].ravel(), *matrix[:3, 3]])
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n",
        encoding="ascii",
    )
    return path


def readVolumeFile(path: Path, labels: bool = False):
    """The image and the 4x4 IJK-to-RAS matrix of a volume file, as (vtkImageData, vtkMatrix4x4).

    Raises:
        InputProblem: if the file cannot be read.
    """
    node = slicer.vtkMRMLLabelMapVolumeNode() if labels else slicer.vtkMRMLScalarVolumeNode()
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetCenterImage(False)
    storage.SetSingleFile(True)
    if not Path(path).is_file() or not storage.ReadData(node) or node.GetImageData() is None:
        raise InputProblem(f"The result {Path(path).name} cannot be read back; see the log.")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return node.GetImageData(), matrix


def imageOf(array):
    """Voxels (k, j, i) as vtkImageData, copied."""
    image = vtk.vtkImageData()
    image.SetDimensions(*reversed(array.shape))
    scalars = numpySupport.numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    return image


def _writeNrrd(path: Path, array, geometry: GridGeometry, sizes, kinds, fields) -> Path:
    array = np.ascontiguousarray(array)
    code = array.dtype.str[1:]
    if code not in _NRRD_TYPES:
        raise InputProblem(f"Voxels of the type {array.dtype} cannot be written; convert the volume first.")
    toLPS = np.diag([*_RAS_TO_LPS, 1.0]) @ geometry.ijkToRAS
    directions = [_vector(toLPS[:3, axis]) for axis in range(3)]
    if len(sizes) == 4:
        directions.insert(0, "none")
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[code]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(size) for size in sizes)}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        "encoding: raw",
        f"space origin: {_vector(toLPS[:3, 3])}",
        *(f"{name}:={value}" for name, value in fields.items()),
    ]
    with path.open("wb") as stream:
        stream.write(("\n".join(lines) + "\n\n").encode("ascii"))
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return path


def _vector(values) -> str:
    return "(" + ",".join(repr(float(value)) for value in values) + ")"
