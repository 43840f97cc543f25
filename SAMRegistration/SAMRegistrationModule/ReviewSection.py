"""The part of the panel that shows a result, one click each."""

from .Geometry import InputProblem
from .Review import Review


class ReviewSection:
    """Buttons for the views on the result.

    Args:
        ui: the panel's widgets by name.
    """

    def __init__(self, ui) -> None:
        self._ui = ui
        self._parameters = None
        self._views = {
            ui.fadeButton: lambda review: review.fade(ui.fadeSliderWidget.value),
            ui.checkerboardButton: lambda review: review.checkerboard(),
            ui.differenceButton: lambda review: review.difference(),
            ui.jacobianButton: lambda review: review.jacobian(),
        }
        for button in self._views:
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
        for button in (*self._views, self._ui.gridButton, self._ui.worstButton):
            button.setEnabled(ready)
        self._ui.fadeSliderWidget.setEnabled(ready)
        if not ready:
            self._ui.reviewLabel.setText("Register first, or choose an existing transform under Outputs.")
        elif self._ui.reviewLabel.text.startswith("Register first"):
            self._ui.reviewLabel.setText("")

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
        for button in self._views:
            button.setChecked(button is chosen)
        self._try(self._views[chosen])

    def _onFade(self) -> None:
        if self._ui.fadeButton.checked:
            self._try(self._views[self._ui.fadeButton])

    def _onGrid(self) -> None:
        self._try(lambda review: review.deformedGrid(self._ui.gridButton.checked))

    def _onWorst(self) -> None:
        def jump(review) -> None:
            position, sentence = review.worstPlace()
            review.jumpTo(position)
            self._ui.reviewLabel.setText(sentence)

        self._try(jump)

    def _try(self, view) -> None:
        review = self._review()
        if review is None:
            return
        try:
            view(review)
        except InputProblem as problem:
            self._ui.reviewLabel.setText(str(problem))
