"""The part of the panel about the computer: what is installed, devices, memory, models, repair."""

from .Environment import READY, inspectPackages, nvidiaDriver
from .Failures import adviceFor, adviceOn
from .Installation import Installer
from .Models import deleteModel, installedModels

MODEL_COLUMNS = ("Model", "License", "MB", "Trained on")


class EnvironmentSection:
    """Checks, installs and repairs what the worker needs; does nothing until it is asked.

    Args:
        ui: the panel's widgets by name.
        logic: whose worker is asked.
        log: takes lines for the log.
        dialogs: `confirm(text) -> bool`, `chooseFolder() -> str` and `copy(text)`.
        onDevices: told the names of the devices that were found.
    """

    def __init__(self, ui, logic, log, dialogs, onDevices) -> None:
        self._ui, self._logic, self._log = ui, logic, log
        self._dialogs, self._onDevices = dialogs, onDevices
        self._goOn = self._giveUp = None
        self._working = set()
        self._models = []
        self._installer = Installer(dialogs.confirm, log, self._onInstalled)
        for button, action in (
            (ui.checkEnvironmentButton, self.check),
            (ui.installButton, self._installer.install),
            (ui.repairButton, self._onRepair),
            (ui.offlineButton, self._onOffline),
            (ui.freeMemoryButton, self._onFree),
            (ui.copyLogButton, self._onCopy),
            (ui.deleteModelButton, self._onDelete),
        ):
            button.clicked.connect(lambda *_, act=action: act())
        ui.environmentCollapsibleButton.contentsCollapsed.connect(lambda *_: self.showModels())
        ui.modelsTable.setHorizontalHeaderLabels(list(MODEL_COLUMNS))
        ui.modelsTable.itemSelectionChanged.connect(lambda *_: self._onSelected())

    def whenReady(self, goOn, giveUp, device: str = "cpu", allowCPU: bool = False) -> None:
        """Call `goOn` once everything is installed and the device computes; before the first use only.

        Args:
            goOn: called with the device to use: the wanted one, or the CPU where that fails and it is allowed.
            giveUp: called with a sentence instead, if nothing can be done yet.
            device: what is wanted.
            allowCPU: whether the CPU will do.
        """
        if device in self._working:
            goOn(device)
            return
        self._goOn = lambda: self._tryDevice(device, allowCPU, goOn, giveUp)
        self._giveUp = giveUp
        missing = [package for package in inspectPackages() if package.state != READY]
        if not missing:
            self._continue()
            return
        self._say("\n".join(package.sentence for package in missing))
        if any("Repair" in package.sentence for package in missing):
            self._onRepair()
        else:
            self._installer.install()

    def _tryDevice(self, device: str, allowCPU: bool, goOn, giveUp) -> None:
        """Let the worker compute something small before the first registration on a device."""

        def onResult(result: dict) -> None:
            if result["works"]:
                self._working.add(device)
                goOn(device)
                return
            problem = f"{result['device']} does not compute: {result['error']}"
            advice = adviceFor([result["error"]]) or 'Choose "cpu" under Preset, or press Repair under Environment.'
            self._say(f"{problem}\n{advice}")
            if allowCPU and device != "cpu":
                self._log(f"{problem}; the CPU is used instead")
                self._tryDevice("cpu", False, goOn, giveUp)
            else:
                giveUp(f"{problem}\n{advice}")

        def onError(message: str, hint, kind: str) -> None:
            # A device that is not there is the worker's to judge, which knows whether the CPU will do.
            if kind == "input" and allowCPU:
                goOn(device)
                return
            self._onError(message, hint, kind)
            giveUp(self._ui.environmentLabel.text)

        self._logic.ask("check_device", {"device": device}, onResult, onError)

    def check(self) -> None:
        """Let the worker, a child process, say what it finds and compute on every device."""
        missing = [package.sentence for package in inspectPackages() if package.state != READY]
        if missing:
            self._say("\n".join(missing))
            return
        self._say("Checking...")
        self._logic.ask("hello", {}, self._onHello, self._onError)

    def showModels(self) -> None:
        """List the models that are on this computer."""
        import qt

        self._models = installedModels()
        table = self._ui.modelsTable
        table.setRowCount(len(self._models))
        for row, model in enumerate(self._models):
            cells = (model.name, model.license, f"{model.megabytes:.1f}", model.trainedOn)
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(row, column, item)
        self._onSelected()

    def _onHello(self, found: dict) -> None:
        lines = [f"PyTorch {found['torch']}, CUDA {found['cuda'] or 'not in this build'}, Python {found['python']}"]
        names = [device["name"] for device in found["devices"]]
        if driver := nvidiaDriver():
            lines.append(f"NVIDIA driver {driver}")
        lines += [_deviceText(device) for device in found["devices"]]
        self._say("\n".join(lines))
        self._onDevices(names)
        self._checkNext(names, lines)

    def _checkNext(self, names: "list[str]", lines: "list[str]") -> None:
        """Compute on one device after the other, and say how it went."""
        if not names:
            return
        name, *others = names

        def onResult(result: dict) -> None:
            if result["works"]:
                verdict = f"computes ({result['seconds'] * 1000:.0f} ms)"
            else:
                verdict = f"FAILS: {result['error']} {adviceFor([result['error']]) or ''}".rstrip()
            self._say("\n".join([*lines, f"{name} {verdict}"]))
            self._checkNext(others, [*lines, f"{name} {verdict}"])

        self._logic.ask("check_device", {"device": name}, onResult, self._onError)

    def _onError(self, message: str, hint, kind: str) -> None:
        advice = adviceOn(message, hint, kind, self._logic.worker.log)
        self._say("\n".join(part for part in (message, advice) if part))

    def _onInstalled(self, problem) -> None:
        if problem:
            advice = adviceFor(self._ui.logTextEdit.plainText.splitlines()[-60:])
            self._say("\n".join(part for part in (problem, advice) if part))
            giveUp, self._goOn, self._giveUp = self._giveUp, None, None
            if giveUp is not None:
                giveUp(self._ui.environmentLabel.text)
            return
        # The worker may have started before; the packages are new to it.
        self._logic.worker.close()
        self._say("Everything is installed.")
        self.check()
        self._continue()

    def _continue(self) -> None:
        goOn, self._goOn, self._giveUp = self._goOn, None, None
        if goOn is not None:
            goOn()

    def _onRepair(self) -> None:
        self._logic.worker.close()
        self._working.clear()
        self._installer.repair()

    def _onOffline(self) -> None:
        if folder := self._dialogs.chooseFolder():
            self._installer.installFrom(folder)

    def _onFree(self) -> None:
        if self._logic.worker.isRunning:
            self._logic.ask("forget", {}, lambda _: self._say("The worker keeps nothing now."), self._onError)
        else:
            self._say("The worker does not run, so it keeps nothing.")

    def _onCopy(self) -> None:
        packages = "\n".join(package.sentence for package in inspectPackages())
        parts = (packages, self._ui.environmentLabel.text, self._ui.logTextEdit.plainText)
        self._dialogs.copy("\n\n".join(parts))

    def _onSelected(self) -> None:
        row = self._ui.modelsTable.currentRow()
        chosen = self._models[row] if 0 <= row < len(self._models) else None
        self._ui.deleteModelButton.setEnabled(chosen is not None and chosen.removable)

    def _onDelete(self) -> None:
        model = self._models[self._ui.modelsTable.currentRow()]
        if self._dialogs.confirm(f"Delete the model {model.name} from this computer?"):
            try:
                deleteModel(model)
            except OSError as error:
                self._say(f"{model.name} cannot be deleted: {error}")
            self.showModels()

    def _say(self, text: str) -> None:
        self._ui.environmentLabel.setText(text)


def _deviceText(device: dict) -> str:
    sizes = [device.get("free_bytes"), device.get("total_bytes")]
    memory = "" if None in sizes else f", {sizes[0] / 2**30:.1f} of {sizes[1] / 2**30:.1f} GiB free"
    capability = f", capability {device['capability']}" if device.get("capability") else ""
    return f"{device['name']}: {device['title']}{memory}{capability}"
