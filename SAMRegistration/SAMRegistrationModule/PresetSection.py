"""The part of the panel that says which preset is for what."""

from .Presets import presetTexts

DEVICES = ("auto", "cpu", "cuda")


class PresetSection:
    """Lets the user choose a preset and a device.

    Args:
        ui: the panel's widgets by name.
    """

    def __init__(self, ui) -> None:
        self._ui = ui
        self._parameters = None
        self._texts = {preset.name: preset.text for preset in presetTexts()}
        ui.presetComboBox.addItems(list(self._texts))
        ui.deviceComboBox.addItems(list(DEVICES))
        ui.presetComboBox.currentIndexChanged.connect(lambda *_: self._onChosen())
        ui.deviceComboBox.currentIndexChanged.connect(lambda *_: self._onChosen())

    def setParameters(self, parameters) -> None:
        """Show the choice of another parameter node."""
        self._parameters = None
        if parameters is not None:
            _choose(self._ui.presetComboBox, parameters.preset)
            _choose(self._ui.deviceComboBox, parameters.device)
        self._parameters = parameters
        self._describe()

    def setDevices(self, names: "list[str]") -> None:
        """Offer the devices that the worker found."""
        known = [self._ui.deviceComboBox.itemText(index) for index in range(self._ui.deviceComboBox.count)]
        self._ui.deviceComboBox.addItems([name for name in names if name not in known])

    def _onChosen(self) -> None:
        if self._parameters is not None:
            self._parameters.preset = self._ui.presetComboBox.currentText
            self._parameters.device = self._ui.deviceComboBox.currentText
        self._describe()

    def _describe(self) -> None:
        self._ui.presetLabel.setText(self._texts.get(self._ui.presetComboBox.currentText, ""))


def _choose(comboBox, text: str) -> None:
    """Select an item; a name from an older scene is added."""
    if comboBox.findText(text) < 0:
        comboBox.addItem(text)
    comboBox.setCurrentIndex(comboBox.findText(text))
