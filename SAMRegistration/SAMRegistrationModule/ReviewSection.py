"""The part of the panel that shows a result, one click each."""

from .Review import Review
from .SectionJob import SectionJob

PLACE = "place"
"""What the button that jumps to the worst place asks for, beside the views."""


class ReviewSection:
    """Buttons for the views on the result. The worker computes them, so that Slicer goes on meanwhile.

    Args:
        ui: the panel's widgets by name.
        logic: does the work.
        isReady: sees to it that everything is installed; see `EnvironmentSection.whenReady`.
    """

    def __init__(self, ui, logic, isReady) -> None:
        self._ui, self._logic, self._isReady = ui, logic, isReady
        self._parameters = None
        self._job, self._asked = SectionJob(logic, self._say), 0
        self._known = {}
        self._views = {
            ui.checkerboardButton: "checkerboard",
            ui.differenceButton: "difference",
            ui.jacobianButton: "jacobian",
        }
        for button in (ui.fadeButton, *self._views):
            button.clicked.connect(lambda *_, chosen=button: self._onView(chosen))
        ui.gridButton.clicked.connect(lambda *_: self._onGrid())
        ui.worstButton.clicked.connect(lambda *_: self._onWorst())
        ui.fadeSliderWidget.valueChanged.connect(lambda *_: self._onFade())

    def setParameters(self, parameters) -> None:
        """Work with another parameter node."""
        self._parameters = parameters
        self.update()

    def update(self) -> None:
        """Enable what can be shown now."""
        ready = self._review() is not None
        for button in (self._ui.fadeButton, *self._views, self._ui.gridButton, self._ui.worstButton):
            button.setEnabled(ready)
        self._ui.fadeSliderWidget.setEnabled(ready)
        if not ready:
            self._say("Register first, or choose an existing transform under Outputs.")
        elif self._ui.reviewLabel.text.startswith("Register first"):
            self._say("")

    def showResult(self) -> None:
        """What the user sees after a registration: the two volumes faded."""
        self._onView(self._ui.fadeButton)

    def _review(self):
        parameters = self._parameters
        if parameters is None:
            return None
        nodes = (parameters.fixedVolume, parameters.movingVolume, parameters.outputTransform)
        if any(node is None for node in nodes) or any(node.GetImageData() is None for node in nodes[:2]):
            return None
        return Review(*nodes, keeper=parameters.parameterNode)

    def _onView(self, chosen) -> None:
        review = self._review()
        if review is None:
            return
        for button in (self._ui.fadeButton, *self._views):
            button.setChecked(button is chosen)
        self._stop()
        if chosen is self._ui.fadeButton:
            review.fade(self._ui.fadeSliderWidget.value)
            return
        view = self._views[chosen]
        if self._known.get(view) == review.state and review.show(view):
            return
        self._compute(review, view, lambda found: review.take(view, found))

    def _onFade(self) -> None:
        if self._ui.fadeButton.checked and (review := self._review()) is not None:
            review.fade(self._ui.fadeSliderWidget.value)

    def _onGrid(self) -> None:
        if (review := self._review()) is not None:
            review.deformedGrid(self._ui.gridButton.checked)

    def _onWorst(self) -> None:
        if (review := self._review()) is not None:
            self._stop()
            self._compute(review, PLACE, lambda found: self._jump(review, found))

    def _jump(self, review: Review, found) -> None:
        review.jumpTo(found.worstRAS)
        self._say(found.sentence)

    def _compute(self, review: Review, what: str, take) -> None:
        """Let the worker compute a view, or the worst place, once it can work."""
        state, asked = review.state, self._asked
        self._say("Computing...")

        def onDone(found) -> None:
            self._known[what] = state
            self._say("")
            take(found)

        def start(_device: str) -> None:
            if asked != self._asked:
                return
            views = () if what == PLACE else (what,)
            nodes = (review.transform, review.fixed, review.moving)
            self._job.start(lambda **callbacks: self._logic.compare(*nodes, views, **callbacks), onDone)

        self._isReady(start, self._say)

    def _stop(self) -> None:
        """What was asked before is not wanted any more."""
        self._asked += 1
        self._job.abandon()

    def _say(self, text: str) -> None:
        self._ui.reviewLabel.setText(text)
