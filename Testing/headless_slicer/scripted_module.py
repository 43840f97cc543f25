"""Stand-ins for the base classes of scripted modules: what the module uses of them."""

from __future__ import annotations

import inspect
import unittest
from pathlib import Path
from typing import Any


class ScriptedLoadableModule:
    """A module's description; `parent` takes its texts."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """A panel within a parent widget with a layout; without one it makes its own and is set up at once."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent or self._window()
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()

    @staticmethod
    def _window() -> Any:
        import qt
        import slicer

        window = slicer.qMRMLWidget()
        window.setLayout(qt.QVBoxLayout())
        window.setMRMLScene(slicer.mrmlScene)
        return window

    def resourcePath(self, name: str) -> str:
        return str(Path(inspect.getfile(type(self))).parent / "Resources" / name)

    def setup(self) -> None:
        """To be extended."""


class ScriptedLoadableModuleLogic:
    """A logic with one parameter node per scene."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        import slicer

        for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
            if node.GetModuleName() == self.moduleName:
                return node
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetName(self.moduleName)
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A self test; messages go nowhere."""

    def delayDisplay(self, message: str, *_: Any) -> None:
        self.assertIsInstance(message, str)

    def runTest(self) -> None:
        """To be extended."""


CLASSES = {
    kind.__name__: kind
    for kind in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
}
