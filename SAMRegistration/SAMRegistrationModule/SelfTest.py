"""A small volume for the self test in Slicer."""

import slicer

from .Lazy import numpy as np


def addPhantom(name: str, offset: float):
    """A volume of three soft balls of different brightness, moved by `offset` mm along R."""
    axis = np.arange(-47.5, 48.0, 2.5)
    s, a, r = np.meshgrid(axis, axis, axis, indexing="ij")
    values = np.full(r.shape, -900.0)
    for center, radius, value in (((0, 0, 0), 32, 40), ((14, 6, 4), 11, 500), ((-12, -8, -10), 9, -600)):
        distance = np.sqrt((r - offset - center[0]) ** 2 + (a - center[1]) ** 2 + (s - center[2]) ** 2)
        share = 1 / (1 + np.exp((distance - radius) / 1.5))
        values += share * (value - values)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.round(values).astype(np.int16))
    node.SetSpacing(2.5, 2.5, 2.5)
    node.SetOrigin(-47.5, -47.5, -47.5)
    node.CreateDefaultDisplayNodes()
    return node
