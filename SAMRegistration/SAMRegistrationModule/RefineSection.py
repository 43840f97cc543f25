"""The part of the panel that corrects a result in boxes and at landmarks, step by step."""

from .ApplySection import CANCEL, OUTPUT_PARAMETERS, STOPPING
from .OutputNodes import restore
from .Refinement import SIMILARITIES, RefinementInputs
from .RefinementHistory import RefinementHistory, Step
from .RegionList import RegionList
from .SectionJob import SectionJob

REFINE = "Refine"
HISTORY_COLUMNS = ("Step", "Before", "After", "State")


class RefineSection:
    """Runs refinements for the panel, and keeps their history.

    Args:
        ui: the panel's widgets by name.
        logic: does the work.
        isReady: sees to it that everything is installed; see `EnvironmentSection.whenReady`.
        onFinished: told nothing after the result has changed.
    """

    def __init__(self, ui, logic, isReady, onFinished) -> None:
        self._ui, self._logic, self._isReady, self._onFinished = ui, logic, isReady, onFinished
        self._parameters = None
        self._isStarting = False
        cancelled = "Cancelled; the result is as it was."
        self._job = SectionJob(logic, self._say, lambda _message: self.update(), cancelled)
        self._after, self._outputsBefore = None, []
        self.regions = RegionList(ui, self.update)
        ui.similarityComboBox.addItems(list(SIMILARITIES))
        ui.similarityComboBox.currentIndexChanged.connect(lambda *_: self._onSimilarity())
        ui.historyTable.setHorizontalHeaderLabels(list(HISTORY_COLUMNS))
        ui.refineButton.clicked.connect(lambda *_: self._onRefine())
        ui.showBeforeButton.clicked.connect(lambda *_: self._onShowBefore())
        ui.undoRefineButton.clicked.connect(lambda *_: self._onUndo())
        ui.acceptButton.clicked.connect(lambda *_: self._onAccept())

    def setParameters(self, parameters) -> None:
        """Work with another parameter node."""
        self._showAfter()
        self._parameters = parameters
        self.regions.setParameters(parameters)
        if parameters is not None:
            self._ui.similarityComboBox.setCurrentIndex(SIMILARITIES.index(parameters.similarity))
        self.update()

    def update(self) -> None:
        """Show what can be done now, and what is missing."""
        button, history = self._ui.refineButton, self._history()
        if self._job.running is not None:
            button.setText(CANCEL)
            button.setEnabled(True)
        else:
            problem = "There is no scene." if self._parameters is None else self._inputs().missing()
            button.setText(REFINE)
            button.setToolTip(
                problem or "Improve the result in the boxes and at the landmarks; the step can be undone."
            )
            button.setEnabled(problem is None and not self._isStarting)
        steps = history.steps if history is not None else []
        isIdle = self._job.running is None and bool(steps)
        self._ui.showBeforeButton.setEnabled(isIdle)
        self._ui.undoRefineButton.setEnabled(isIdle)
        self._ui.acceptButton.setEnabled(isIdle and not steps[-1].isAccepted)
        self._showSteps(steps)

    def forget(self) -> None:
        """A new registration has begun a new history."""
        self._after, self._outputsBefore = None, []
        self._ui.showBeforeButton.setChecked(False)
        if (history := self._history()) is not None:
            history.clear()
        self.update()

    def _history(self) -> "RefinementHistory | None":
        parameters = self._parameters
        if parameters is None or parameters.outputTransform is None:
            return None
        return RefinementHistory(parameters.parameterNode, parameters.outputTransform)

    def _inputs(self) -> RefinementInputs:
        parameters = self._parameters
        pairs = (
            (parameters.fixedLandmarks, parameters.movingLandmarks) if parameters.refineWithLandmarks else (None,) * 2
        )
        return RefinementInputs(
            transformNode=parameters.outputTransform,
            fixedVolume=parameters.fixedVolume,
            movingVolume=parameters.movingVolume,
            regions=self.regions.nodes(),
            fixedLandmarks=pairs[0],
            movingLandmarks=pairs[1],
            weight=parameters.landmarkWeight,
            exact=parameters.exactLandmarks,
            similarity=parameters.similarity,
            iterations=parameters.refineIterations,
            margin=parameters.refineMargin,
            device=parameters.device,
            allowCPU=parameters.allowCPU,
        )

    def _onRefine(self) -> None:
        if self._job.running is not None:
            self._ui.refineButton.setText(STOPPING)
            self._ui.refineButton.setEnabled(False)
            self._job.cancel()
            return
        self._showAfter()
        self._isStarting = True
        self._say("Starting the worker...")
        self.update()
        parameters = self._parameters
        self._isReady(self._start, self._giveUp, parameters.device, parameters.allowCPU)

    def _start(self, device: str) -> None:
        self._isStarting = False
        if self._parameters is None:
            return
        # Who goes on refining is content with the step before.
        history = self._history()
        history.accept()
        addStep = history.begin()
        inputs = {**vars(self._inputs()), "device": device}
        title = ", ".join(node.GetName() for node in inputs["regions"]) or "landmarks"

        def onDone(_nodes: dict, found: dict) -> None:
            addStep(_stepOf(title, found))
            self._outputsBefore = self._logic.takeUndo()
            self._say(_summary(found, inputs["fixedLandmarks"]))
            self.update()
            self._onFinished()

        def onProgress(stage: str, share: float, _left) -> None:
            self._say(f"{stage.capitalize()}, {100 * share:.0f} %")

        def refine(**callbacks):
            return self._logic.refine(**inputs, outputs=self._existingOutputs(), onProgress=onProgress, **callbacks)

        self._job.start(refine, onDone)
        self.update()

    def _existingOutputs(self) -> dict:
        """Outputs of the registration that shall follow the result."""
        names = ((name, node) for name, (_, node) in OUTPUT_PARAMETERS.items() if name != "report")
        return {name: getattr(self._parameters, node) for name, node in names}

    def _onShowBefore(self) -> None:
        if not self._ui.showBeforeButton.checked:
            self._showAfter()
            return
        history = self._history()
        before, transform = history.before(), self._parameters.outputTransform
        if before is not None:
            self._after = (transform, transform.GetTransformFromParent())
            transform.SetAndObserveTransformFromParent(before.GetTransformFromParent())
            self._say("This is the result before the last step.")

    def _showAfter(self) -> None:
        """End the look at the result before the last step."""
        if self._after is not None:
            transform, held = self._after
            self._after = None
            transform.SetAndObserveTransformFromParent(held)
            self._say("This is the result after the last step.")
        self._ui.showBeforeButton.setChecked(False)

    def _onUndo(self) -> None:
        self._showAfter()
        sentence = "The last step is undone."
        if self._outputsBefore:
            restore(self._outputsBefore)
        elif self._parameters.outputWarped is not None:
            sentence += " The registered volume still shows it; look at the moving volume under the transform instead."
        self._outputsBefore = []
        self._history().undo()
        self._say(sentence)
        self.update()
        self._onFinished()

    def _onAccept(self) -> None:
        self._showAfter()
        self._history().accept()
        self._say("The step is kept. It can still be undone.")
        self.update()

    def _giveUp(self, sentence: str) -> None:
        self._isStarting = False
        self._say(sentence)
        self.update()

    def _onSimilarity(self) -> None:
        if self._parameters is not None:
            self._parameters.similarity = self._ui.similarityComboBox.currentText

    def _showSteps(self, steps: list) -> None:
        import qt

        table = self._ui.historyTable
        table.setRowCount(len(steps))
        for row, step in enumerate(steps):
            numbers = ["" if value is None else f"{value:.1f} {step.unit}" for value in (step.before, step.after)]
            state = "accepted" if step.isAccepted else "to be accepted"
            for column, text in enumerate((step.title, *numbers, state)):
                table.setItem(row, column, qt.QTableWidgetItem(text))

    def _say(self, text: str) -> None:
        self._ui.refineLabel.setText(text)


def _stepOf(title: str, found: dict) -> Step:
    """The errors within the boxes, or else at the landmarks."""
    regions = [region for region in found.get("regions", []) if region.get("rmse_before") is not None]
    if regions:
        means = [sum(region[name] for region in regions) / len(regions) for name in ("rmse_before", "rmse_after")]
        return Step(title, *means)
    errors = found.get("landmarks", {})
    before, after = errors.get("tre_before_mm") or [], errors.get("tre_after_mm") or []
    if not before:
        return Step(title)
    return Step(title, sum(before) / len(before), sum(after) / len(after), "mm")


def _summary(found: dict, landmarksNode) -> str:
    """What a refinement has reached, in a sentence or two."""
    step = _stepOf("", found)
    parts = ["Done"]
    if step.before is not None:
        what = "error in the boxes" if step.unit == "HU" else "error at the landmarks"
        parts.append(f"{what} {step.before:.1f} {step.unit} before, {step.after:.1f} {step.unit} after")
    text = "; ".join(parts) + "."
    suspicious = found.get("landmarks", {}).get("suspicious", [])
    if suspicious and landmarksNode is not None:
        names = ", ".join(f'"{landmarksNode.GetNthControlPointLabel(index)}"' for index in suspicious)
        text += f" These landmarks contradict the others: {names}."
    return "\n".join([text, *found.get("warnings", [])])
