"""The part of the panel that measures a result on segmentations or landmarks."""

from .Requests import EvaluationInputs
from .SectionJob import SectionJob


class EvaluateSection:
    """Runs evaluations for the panel.

    Args:
        ui: the panel's widgets by name.
        logic: does the work.
        isReady: sees to it that everything is installed; see `EnvironmentSection.whenReady`.
        showTable: shows a table node and a chart node to the user.
    """

    def __init__(self, ui, logic, isReady, showTable) -> None:
        self._ui, self._logic = ui, logic
        self._isReady, self._showTable = isReady, showTable
        self._parameters = None
        self._job = SectionJob(logic, ui.evaluateLabel.setText, lambda _message: self.update())
        ui.evaluateButton.clicked.connect(lambda *_: self._isReady(self._start, self._giveUp))

    def setParameters(self, parameters) -> None:
        """Work with another parameter node."""
        self._parameters = parameters
        self.update()

    def update(self) -> None:
        """Show what is missing."""
        problem = self._inputs().missing() if self._parameters is not None else "There is no scene."
        self._ui.evaluateButton.setToolTip(problem or "Measure the output transform.")
        self._ui.evaluateButton.setEnabled(problem is None and self._job.running is None)

    def _inputs(self) -> EvaluationInputs:
        parameters = self._parameters
        landmarks = (parameters.evaluationFixedLandmarks, parameters.evaluationMovingLandmarks)
        if landmarks == (None, None):
            landmarks = (parameters.fixedLandmarks, parameters.movingLandmarks)
        return EvaluationInputs(
            transformNode=parameters.outputTransform,
            fixedVolume=parameters.fixedVolume,
            movingVolume=parameters.movingVolume,
            fixedLabels=parameters.evaluationFixedLabels,
            movingLabels=parameters.evaluationMovingLabels,
            fixedLandmarks=landmarks[0],
            movingLandmarks=landmarks[1],
        )

    def _giveUp(self, sentence: str) -> None:
        self._ui.evaluateLabel.setText(sentence)

    def _start(self, _device: str) -> None:
        if self._parameters is None or self._job.running is not None:
            return
        self._ui.evaluateLabel.setText("Measuring...")
        nodes = {"tableNode": self._parameters.evaluationTable, "chartNode": self._parameters.evaluationChart}

        def evaluate(**callbacks):
            return self._logic.evaluate(**vars(self._inputs()), **nodes, **callbacks)

        self._job.start(evaluate, self._onDone)
        self.update()

    def _onDone(self, tableNode, found: dict, chartNode) -> None:
        self._parameters.evaluationTable, self._parameters.evaluationChart = tableNode, chartNode
        self._ui.evaluateLabel.setText(_summary(found))
        self.update()
        self._showTable(tableNode, chartNode)


def _summary(found: dict) -> str:
    """What changed, in a line."""
    parts = []
    labels, landmarks = found.get("labels"), found.get("landmarks")
    if labels:
        before, after = (labels["mean"][state]["dice"] for state in ("before", "after"))
        parts.append(f"Mean Dice {before:.3f} before, {after:.3f} after")
    if landmarks and landmarks.get("count"):
        before, after = (landmarks["mean"][state]["mean_mm"] for state in ("before", "after"))
        parts.append(f"mean landmark error {before:.1f} mm before, {after:.1f} mm after")
    return "; ".join(parts) + "."
