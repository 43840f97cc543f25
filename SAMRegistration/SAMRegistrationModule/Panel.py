"""The sections of the panel put together."""

import vtk

from .ApplySection import ApplySection
from .EnvironmentSection import EnvironmentSection
from .EvaluateSection import EvaluateSection
from .PointsSection import PointsSection
from .PresetSection import PresetSection
from .RefineSection import RefineSection
from .ReviewSection import ReviewSection


class Panel:
    """Joins widgets, parameters and logic.

    Args:
        ui: the panel's widgets by name.
        logic: does the work.
        dialogs: asks the user.
    """

    def __init__(self, ui, logic, dialogs) -> None:
        self._ui = ui
        self._parameters = None
        self._tag = None
        self._observer = None
        self.preset = PresetSection(ui)
        self.environment = EnvironmentSection(
            ui, logic, ui.logTextEdit.appendPlainText, dialogs, self.preset.setDevices
        )
        self.apply = ApplySection(ui, logic, self.environment.whenReady, self._onRegistered)
        self.review = ReviewSection(ui, logic, self.environment.whenReady)
        self.points = PointsSection(ui, logic, self.environment.whenReady, dialogs)
        self.refine = RefineSection(ui, logic, self.environment.whenReady, self._onRefined)
        self.evaluate = EvaluateSection(ui, logic, self.environment.whenReady, _showTable)

    def setParameters(self, parameters) -> None:
        """Show a parameter node, or none."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._tag)
            self._parameters.parameterNode.RemoveObserver(self._observer)
        self._parameters = parameters
        for section in (self.preset, self.apply, self.review, self.points, self.refine, self.evaluate):
            section.setParameters(parameters)
        if parameters is not None:
            self._tag = parameters.connectGui(self._ui)
            self._observer = parameters.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onModified)
            self._onModified()

    def _onModified(self, *_) -> None:
        for section in (self.apply, self.review, self.points, self.refine, self.evaluate):
            section.update()

    def _onRefined(self) -> None:
        self.apply.update()
        self.review.update()

    def _onRegistered(self, _nodes: dict, _report: dict) -> None:
        self.refine.forget()
        self.review.update()
        if self._parameters is not None and self._parameters.showResult:
            self.review.showResult()


def _showTable(tableNode, chartNode) -> None:
    """Show a table and a chart, where there is a layout to show them in."""
    import slicer

    application = getattr(slicer, "app", None)
    logic = application.applicationLogic() if hasattr(application, "applicationLogic") else None
    if logic is None:
        return
    selection = logic.GetSelectionNode()
    selection.SetReferenceActiveTableID(tableNode.GetID())
    logic.PropagateTableSelection()
    selection.SetReferenceActivePlotChartID(chartNode.GetID())
    logic.PropagatePlotChartSelection()
    manager = application.layoutManager()
    if manager is not None:
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotTableView)
