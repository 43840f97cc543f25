"""The part of the panel where points are put on the fixed volume and found on the moving one."""

from .Geometry import InputProblem
from .LandmarkFit import RIGID, fitLandmarks
from .PointPairs import PointPairs, definedIDs
from .PointQueries import METHODS
from .PointTable import PointTable, writePairs
from .SectionJob import SectionJob
from .TransformNodes import newStart

FIXED, MOVING = "fixed", "moving"


class PointsSection:
    """Matches points while they are put or dragged; one question is on its way at a time, the newest counts.

    Args:
        ui: the panel's widgets by name.
        logic: does the work.
        isReady: sees to it that everything is installed; see `EnvironmentSection.whenReady`.
        dialogs: `saveFile(title, kind) -> str`.
    """

    def __init__(self, ui, logic, isReady, dialogs) -> None:
        self._ui, self._logic, self._isReady, self._dialogs = ui, logic, isReady, dialogs
        self._parameters = None
        self._points = None
        self._observed = []
        self._seen = {FIXED: {}, MOVING: {}}
        self._wanted, self._isStarting = [], False
        self._job, self._heatMapJob = SectionJob(logic, self._say), SectionJob(logic, self._say)
        self._table = PointTable(ui.pointsTable, self._jumpTo)
        ui.pointMethodComboBox.addItems(list(METHODS))
        ui.pointMethodComboBox.currentIndexChanged.connect(lambda *_: self._onMethod())
        for button, action in (
            (ui.placePointsButton, self._onPlace),
            (ui.matchPointsButton, self._onMatchAll),
            (ui.heatMapButton, self._onHeatMap),
            (ui.pointsAsLandmarksButton, self._onLandmarks),
            (ui.pointsAsStartButton, self._onStart),
            (ui.exportPointsButton, self._onExport),
        ):
            button.clicked.connect(lambda *_, act=action: self._try(act))

    def setParameters(self, parameters) -> None:
        """Work with another parameter node."""
        self._stop()
        self._parameters = parameters
        if parameters is not None:
            self._ui.pointMethodComboBox.setCurrentIndex(METHODS.index(parameters.pointMethod))
        self.update()

    def update(self) -> None:
        """Follow the lists that are chosen, and enable what can be done."""
        parameters = self._parameters
        nodes = (None, None) if parameters is None else (parameters.fixedPoints, parameters.movingPoints)
        if [node for node, _ in self._observed] != [node for node in nodes if node is not None]:
            self._observe(*nodes)
        if self._points is not None:
            self._points.ignoring = parameters.outputTransform
        hasVolumes = parameters is not None and None not in (parameters.fixedVolume, parameters.movingVolume)
        self._ui.placePointsButton.setEnabled(hasVolumes)
        hasPoints = hasVolumes and nodes[0] is not None and bool(definedIDs(nodes[0]))
        for button in (self._ui.matchPointsButton, self._ui.heatMapButton):
            button.setEnabled(hasPoints)
        hasPairs = self._points is not None and bool(self._points.pairs)
        for button in (self._ui.pointsAsLandmarksButton, self._ui.pointsAsStartButton, self._ui.exportPointsButton):
            button.setEnabled(hasPairs)

    def _observe(self, fixedNode, movingNode) -> None:
        for node, tags in self._observed:
            for tag in tags:
                node.RemoveObserver(tag)
        self._observed, self._points = [], None
        for node, changed in ((fixedNode, self._onFixedChanged), (movingNode, self._onMovingChanged)):
            if node is None:
                continue
            events = (node.PointModifiedEvent, node.PointPositionDefinedEvent, node.PointRemovedEvent)
            tags = [node.AddObserver(event, lambda *_, act=changed: act()) for event in events]
            self._observed.append((node, tags))
        if fixedNode is not None and movingNode is not None:
            self._points = PointPairs(fixedNode, movingNode, self._parameters.outputTransform)
        self._seen = {FIXED: _positionsOf(fixedNode), MOVING: _positionsOf(movingNode)}
        self._table.show(self._points)

    def _onFixedChanged(self) -> None:
        node = self._parameters.fixedPoints
        before, self._seen[FIXED] = self._seen[FIXED], _positionsOf(node)
        if self._points is None or self._points.isWriting:
            return
        if self._points.removeGone():
            self._show()
        moved = [key for key, place in self._seen[FIXED].items() if before.get(key) != place]
        if moved and self._parameters.livePoints:
            self._ask(moved)
        self.update()

    def _onMovingChanged(self) -> None:
        points = self._points
        before, self._seen[MOVING] = self._seen[MOVING], _positionsOf(self._parameters.movingPoints)
        if points is None or points.isWriting:
            return
        if points.removeGone():
            self._seen[FIXED] = _positionsOf(self._parameters.fixedPoints)
        for key, place in self._seen[MOVING].items():
            if key in before and before[key] != place:
                points.markMoved(key)
        self._show()

    def _onPlace(self) -> None:
        import slicer

        self._lists()
        logic = slicer.modules.markups.logic()
        logic.SetActiveList(self._parameters.fixedPoints)
        logic.StartPlaceMode(True)
        self._say("Click on the fixed volume; drag a point to move it. Right click ends.")

    def _lists(self) -> None:
        """The lists that are chosen, or new ones; the moving one lies under the result like the moving volume."""
        parameters = self._parameters
        for name, volume in (("fixedPoints", parameters.fixedVolume), ("movingPoints", parameters.movingVolume)):
            if getattr(parameters, name) is None:
                scene = volume.GetScene()
                title = scene.GenerateUniqueName(f"{volume.GetName()} points")
                setattr(parameters, name, scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", title))
        result = parameters.outputTransform
        if result is not None and parameters.movingVolume.GetParentTransformNode() is result:
            parameters.movingPoints.SetAndObserveTransformNodeID(result.GetID())
        self.update()

    def _onMatchAll(self) -> None:
        self._lists()
        kept = {pair.fixedID for pair in self._points.pairs if pair.byHand}
        self._ask([key for key in definedIDs(self._parameters.fixedPoints) if key not in kept])

    def _ask(self, identifiers: list) -> None:
        """Match points as soon as the worker is free, wherever they lie then."""
        self._wanted += [key for key in identifiers if key not in self._wanted]
        if self._job.running is None and not self._isStarting and self._wanted:
            self._isStarting = True
            parameters = self._parameters
            self._isReady(self._send, self._giveUp, parameters.device, parameters.allowCPU)

    def _send(self, device: str) -> None:
        self._isStarting = False
        there = set(definedIDs(self._parameters.fixedPoints)) if self._parameters is not None else set()
        asked, self._wanted = [key for key in self._wanted if key in there], []
        if not asked or self._points is None:
            return
        points = self._points

        def onDone(matched, found: dict) -> None:
            if points is self._points:
                points.take(asked, matched, found)
                self._seen[MOVING] = _positionsOf(points.movingNode)
                self._show()
            self._ask([])

        if not points.pairs:
            self._say("Preparing both volumes, once...")
        options = {**self._options(), "method": self._parameters.pointMethod, "device": device}

        def match(**callbacks):
            return self._logic.matchPoints(*self._volumes(), points.positions(asked), **options, **callbacks)

        self._job.start(match, onDone)

    def _volumes(self) -> tuple:
        return self._parameters.fixedVolume, self._parameters.movingVolume

    def _options(self) -> dict:
        return {"transformNode": self._parameters.outputTransform, "allowCPU": self._parameters.allowCPU}

    def _onHeatMap(self) -> None:
        self._lists()
        chosen = self._table.chosen(self._points) or definedIDs(self._parameters.fixedPoints)[-1]
        position = self._points.positions([chosen])[0]
        parameters = self._parameters
        self._say("Comparing the point with every place of the moving volume...")

        def onDone(node, result: dict) -> None:
            import slicer

            parameters.heatMap = node
            slicer.util.setSliceViewerLayers(
                background=parameters.movingVolume, foreground=node, foregroundOpacity=0.5
            )
            self._say(f"The place that looks most like the point has a likeness of {result['highest']:.2f}.")

        def start(device: str) -> None:
            options = {**self._options(), "device": device}

            def compute(**callbacks):
                return self._logic.heatMap(*self._volumes(), position, parameters.heatMap, **options, **callbacks)

            self._heatMapJob.start(compute, onDone)

        self._isReady(start, self._say, parameters.device, parameters.allowCPU)

    def _onLandmarks(self) -> None:
        parameters = self._parameters
        parameters.initialTransform = None
        parameters.fixedLandmarks, parameters.movingLandmarks = parameters.fixedPoints, parameters.movingPoints
        self._say("The points are the landmarks now: for the start of a registration, for Evaluate and for Refine.")

    def _onStart(self) -> None:
        fixed, moving, labels = self._points.confident()
        fit = fitLandmarks(fixed, moving, freest=RIGID)
        parameters = self._parameters
        parameters.fixedLandmarks = parameters.movingLandmarks = None
        parameters.initialTransform = newStart(parameters.movingVolume, fit.matrix, parameters.initialTransform)
        self._say(fit.sentence(labels))

    def _onExport(self) -> None:
        if path := self._dialogs.saveFile("Points and their partners", "Table (*.csv)"):
            writePairs(path, self._points)
            self._say(f"Written: {path}, in LPS mm.")

    def _onMethod(self) -> None:
        if self._parameters is not None:
            self._parameters.pointMethod = self._ui.pointMethodComboBox.currentText

    def _giveUp(self, sentence: str) -> None:
        self._isStarting, self._wanted = False, []
        self._say(sentence)

    def _try(self, action) -> None:
        try:
            action()
        except (InputProblem, OSError) as problem:
            self._say(str(problem))
        self.update()

    def _stop(self) -> None:
        """What was asked before is not wanted any more."""
        self._job.abandon()
        self._heatMapJob.abandon()
        self._wanted, self._isStarting = [], False

    def _jumpTo(self, position) -> None:
        import slicer

        slicer.vtkMRMLSliceNode.JumpAllSlices(self._parameters.fixedVolume.GetScene(), *position)

    def _show(self) -> None:
        self._table.show(self._points)
        doubtful = sum(not pair.isConfident for pair in self._points.pairs)
        count = len(self._points.pairs)
        self._say(f"{count} points" + (f", {doubtful} of them doubtful" if doubtful else ""))
        self.update()

    def _say(self, text: str) -> None:
        self._ui.pointsLabel.setText(text)


def _positionsOf(node) -> dict:
    """Where the placed points of a list lie, by their identifiers."""
    positions = {}
    for identifier in definedIDs(node) if node is not None else ():
        place = [0.0, 0.0, 0.0]
        node.GetNthControlPointPosition(node.GetControlPointIndexByID(identifier), place)
        positions[identifier] = tuple(place)
    return positions
