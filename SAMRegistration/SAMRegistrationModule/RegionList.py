"""The boxes in which a result is to be refined, one after the other."""

from .Refinement import FIXED, MOVING, SIDE_ATTRIBUTE, drawnOn

ROLE = "SAMRegistration.Region"
COLUMNS = ("Box", "Drawn on")
SIDES = {"fixed volume": FIXED, "moving volume": MOVING}


class RegionList:
    """Lets the user draw boxes, or choose existing ones; the parameter node refers to them.

    Args:
        ui: the panel's widgets by name.
        onChanged: told nothing when there are other boxes.
    """

    def __init__(self, ui, onChanged) -> None:
        self._ui, self._onChanged = ui, onChanged
        self._parameters = None
        ui.regionsTable.setHorizontalHeaderLabels(list(COLUMNS))
        ui.drawnOnComboBox.addItems(list(SIDES))
        ui.drawBoxButton.clicked.connect(lambda *_: self._onDraw())
        ui.addBoxButton.clicked.connect(lambda *_: self._onAdd())
        ui.removeBoxButton.clicked.connect(lambda *_: self._onRemove())

    def setParameters(self, parameters) -> None:
        """Work with another parameter node."""
        self._parameters = parameters
        self._show()

    def nodes(self) -> list:
        """The boxes in their order; those that were deleted are left out."""
        if self._parameters is None:
            return []
        keeper = self._parameters.parameterNode
        found = [keeper.GetNthNodeReference(ROLE, index) for index in range(keeper.GetNumberOfNodeReferences(ROLE))]
        return [node for node in found if node is not None]

    def _onDraw(self) -> None:
        import slicer

        scene = slicer.mrmlScene
        node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", scene.GenerateUniqueName("Box"))
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetRotationHandleVisibility(True)
        self._add(node)
        logic = slicer.modules.markups.logic()
        logic.SetActiveList(node)
        logic.StartPlaceMode(False)

    def _onAdd(self) -> None:
        node = self._ui.regionSelector.currentNode()
        if node is not None:
            self._add(node)

    def _add(self, node) -> None:
        node.SetAttribute(SIDE_ATTRIBUTE, SIDES[self._ui.drawnOnComboBox.currentText])
        if node not in self.nodes():
            self._parameters.parameterNode.AddNodeReferenceID(ROLE, node.GetID())
        self._changed()

    def _onRemove(self) -> None:
        nodes, row = self.nodes(), self._ui.regionsTable.currentRow()
        if not 0 <= row < len(nodes):
            row = len(nodes) - 1
        if row >= 0:
            self._keep([node for index, node in enumerate(nodes) if index != row])

    def _keep(self, nodes: list) -> None:
        keeper = self._parameters.parameterNode
        keeper.RemoveNodeReferenceIDs(ROLE)
        for node in nodes:
            keeper.AddNodeReferenceID(ROLE, node.GetID())
        self._changed()

    def _changed(self) -> None:
        self._show()
        self._onChanged()

    def _show(self) -> None:
        import qt

        sides = {side: title for title, side in SIDES.items()}
        nodes = self.nodes()
        self._ui.regionsTable.setRowCount(len(nodes))
        for row, node in enumerate(nodes):
            for column, text in enumerate((node.GetName(), sides[drawnOn(node)])):
                self._ui.regionsTable.setItem(row, column, qt.QTableWidgetItem(text))
