"""The part of the panel around Apply: what is missing, progress, cancel, status, log, undo."""

from .OutputNodes import REPORT, TRANSFORM
from .Requests import RegistrationInputs
from .SectionJob import SectionJob
from .TransformNodes import applyToMoving

APPLY, CANCEL, STOPPING = "Apply", "Cancel", "Stopping..."
OUTPUT_PARAMETERS = {
    "inverse": ("wantInverse", "outputInverse"),
    "warped": ("wantWarped", "outputWarped"),
    "jacobian": ("wantJacobian", "outputJacobian"),
    "displacement": ("wantDisplacement", "outputDisplacement"),
    REPORT: ("wantReport", "outputReport"),
}
PROGRESS_STEPS = 1000


class ApplySection:
    """Runs registrations for the panel.

    Args:
        ui: the panel's widgets by name.
        logic: does the work.
        isReady: sees to it that everything is installed and the device computes; see
            `EnvironmentSection.whenReady`.
        onFinished: told the output nodes and the report of a registration.
    """

    def __init__(self, ui, logic, isReady, onFinished) -> None:
        self._ui, self._logic = ui, logic
        self._isReady, self._onFinished = isReady, onFinished
        self._parameters = None
        self._running = None
        self._job = SectionJob(logic, self._say, self._onFailed, "Cancelled; the scene is as it was.")
        ui.applyButton.clicked.connect(lambda *_: self._onApply())
        ui.undoButton.clicked.connect(lambda *_: self._onUndo())
        logic.worker.onLog = self.log
        self._setProgress(None)

    @property
    def job(self):
        """The registration on its way, or None."""
        return self._job.running

    def setParameters(self, parameters) -> None:
        """Work with another parameter node."""
        self._parameters = parameters
        self.update()

    def update(self) -> None:
        """Show what can be done now, and what is missing."""
        button = self._ui.applyButton
        if self.job is not None:
            button.setText(CANCEL)
            button.setToolTip("Stop; the scene stays as it was.")
            button.setEnabled(True)
            return
        problem = _inputsOf(self._parameters).missing() if self._parameters is not None else "There is no scene."
        button.setText(APPLY)
        button.setToolTip(problem or "Bring the moving volume onto the fixed one.")
        button.setEnabled(problem is None)
        self._ui.undoButton.setEnabled(self._logic.canUndo)

    def log(self, line: str) -> None:
        """Add a line to the log, which keeps the last ones."""
        self._ui.logTextEdit.appendPlainText(line)

    def cancel(self) -> None:
        """Stop the registration on its way."""
        if self.job is None:
            return
        self._ui.applyButton.setText(STOPPING)
        self._ui.applyButton.setEnabled(False)
        self._job.cancel()

    def _onApply(self) -> None:
        if self.job is not None:
            self.cancel()
        else:
            self._say("Starting the worker...")
            self._ui.applyButton.setEnabled(False)
            parameters = self._parameters
            self._isReady(
                lambda device: self._start(parameters, device),
                self._giveUp,
                parameters.device,
                parameters.allowCPU,
            )

    def _giveUp(self, sentence: str) -> None:
        self._say(sentence)
        self.update()

    def _start(self, parameters, device: str) -> None:
        if self.job is not None:
            return
        outputs = {
            name: getattr(parameters, node) or True
            for name, (wanted, node) in OUTPUT_PARAMETERS.items()
            if getattr(parameters, wanted)
        }
        outputs[TRANSFORM] = parameters.outputTransform or True
        self._say("Preparing the volumes...")
        self._setProgress(0.0)
        inputs = {**vars(_inputsOf(parameters)), "device": device}
        # The panel may show another parameter node, or none, when the registration ends.
        self._running = parameters

        def register(**callbacks):
            return self._logic.register(**inputs, outputs=outputs, onProgress=self._onProgress, **callbacks)

        self._job.start(register, self._onDone)
        self.update()

    def _onProgress(self, stage: str, fraction: float, secondsLeft) -> None:
        left = "" if secondsLeft is None else f", about {_duration(secondsLeft)} left"
        self._say(f"{stage.replace('_', ' ').capitalize()}{left}")
        self._setProgress(fraction)

    def _onDone(self, nodes: dict, report: dict) -> None:
        self._setProgress(None)
        parameters = self._running
        parameters.outputTransform = nodes[TRANSFORM]
        for name, (_, node) in OUTPUT_PARAMETERS.items():
            if name in nodes:
                setattr(parameters, node, nodes[name])
        if parameters.showResult:
            applyToMoving(parameters.movingVolume, nodes[TRANSFORM])
        self._say("\n".join([_summary(report), *(f"Warning: {each}" for each in report.get("warnings", []))]))
        self.update()
        self._onFinished(nodes, report)

    def _onFailed(self, message: str) -> None:
        self._setProgress(None)
        self.log(message)
        self.update()

    def _onUndo(self) -> None:
        self._logic.undo()
        self._say("The outputs hold what they held before; press Undo again to take that back.")
        self.update()

    def _say(self, text: str) -> None:
        self._ui.statusLabel.setText(text)

    def _setProgress(self, fraction) -> None:
        bar = self._ui.progressBar
        bar.setVisible(fraction is not None)
        bar.setValue(round((fraction or 0.0) * PROGRESS_STEPS))


def _inputsOf(parameters) -> RegistrationInputs:
    return RegistrationInputs(
        fixedVolume=parameters.fixedVolume,
        movingVolume=parameters.movingVolume,
        preset=parameters.preset,
        fixedMask=parameters.fixedMask,
        movingMask=parameters.movingMask,
        initialTransform=parameters.initialTransform,
        fixedLandmarks=parameters.fixedLandmarks,
        movingLandmarks=parameters.movingLandmarks,
        device=parameters.device,
        allowCPU=parameters.allowCPU,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _summary(report: dict) -> str:
    """One sentence on what a registration reached."""
    similarity = report.get("similarity", {})
    measure = "normalized_cross_correlation"
    values = [similarity.get(state, {}).get(measure) for state in ("before", "after")]
    parts = [f"Done in {_duration(report.get('seconds') or 0.0)}"]
    if None not in values:
        parts.append(f"correlation {values[0]:.2f} before and {values[1]:.2f} after")
    folded = report.get("field", {}).get("folded_percent")
    if folded is not None:
        parts.append(f"{folded:.2f} % of the voxels fold")
    chosen = report.get("details", {}).get("choice", {}).get("reasons", [])[:1]
    return " ".join(["; ".join(parts) + ".", *(f"Chosen was the {reason}" for reason in chosen)])
