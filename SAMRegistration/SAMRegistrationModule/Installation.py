"""Installing what the worker needs: torch by the extension PyTorch, the rest by slicer.packaging; never at start."""

import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import slicer

from .Environment import (
    BROKEN,
    OLD,
    READY,
    EnvironmentProblem,
    inspectPackages,
    inspectTorch,
    prefixWarning,
    removeHalfInstalled,
    slicerProblem,
)

TORCH_REQUIREMENT = ">=2.5"
REQUIREMENTS_FILE = Path(__file__).parent.parent / "Resources" / "requirements.txt"
REQUESTER = "SAMRegistration"


def requirements() -> "list[str]":
    """What is needed besides torch, as the file says."""
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS_FILE.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def offlineArguments(folder: str) -> "list[str]":
    """What pip is told to install everything from a folder of wheels."""
    return ["--no-index", "--find-links", str(folder), f"torch{TORCH_REQUIREMENT}", *requirements()]


class Installer:
    """Installs, repairs and says what it does; every method ends by calling `onDone` with a sentence or None.

    Args:
        confirm: asks the user a question, returns whether the answer is yes.
        onLog: told every line that pip prints.
        onDone: told what is wrong, or None if everything is installed.
    """

    def __init__(self, confirm: Callable, onLog: Callable, onDone: Callable) -> None:
        self._confirm, self._onLog, self._onDone = confirm, onLog, onDone

    def install(self) -> None:
        """Install what is missing, after asking."""
        self._guarded(self._install)

    def repair(self) -> None:
        """Remove torch, whole or half, and install it again, after asking."""
        self._guarded(self._repair)

    def installFrom(self, folder: str) -> None:
        """Install everything from a folder of wheels, without a network."""
        self._guarded(lambda: self._installFrom(folder))

    def _install(self) -> None:
        self._requireSlicer()
        states = {package.name: package for package in inspectPackages()}
        torch = states.pop("torch")
        if torch.state in (BROKEN, OLD):
            raise EnvironmentProblem(torch.sentence)
        if torch.state != READY:
            self._installTorch()
        if all(package.state == READY for package in states.values()):
            self._onDone(None)
            return
        wanted = ", ".join(name for name, package in states.items() if package.state != READY)
        if not self._confirm(f"SAMRegistration needs {wanted}. Download and install?"):
            raise EnvironmentProblem("Nothing was installed, as you wished.")
        self._pip(requirements())

    def _repair(self) -> None:
        self._requireSlicer()
        if not self._confirm("Remove PyTorch from Slicer and install it again? This downloads some gigabytes."):
            raise EnvironmentProblem("Nothing was changed, as you wished.")
        try:
            slicer.packaging.pip_uninstall("torch torchvision")
        except Exception as error:
            self._onLog(f"pip could not uninstall torch: {error}")
        for name in ("torch", "torchvision"):
            for folder in removeHalfInstalled(name):
                self._onLog(f"removed {folder}")
        self._install()

    def _installFrom(self, folder: str) -> None:
        self._requireSlicer()
        if not any(Path(folder).glob("torch-*.whl")):
            raise EnvironmentProblem(
                f"{folder} holds no wheel of torch. On a computer with a network, run: "
                f'pip download "torch{TORCH_REQUIREMENT}" {" ".join(requirements())} -d FOLDER'
            )
        self._pip(offlineArguments(folder))

    def _requireSlicer(self) -> None:
        if problem := slicerProblem(slicer):
            raise EnvironmentProblem(problem)
        importlib.import_module("slicer.packaging")
        if warning := prefixWarning():
            self._onLog(warning)

    def _installTorch(self) -> None:
        try:
            import PyTorchUtils
        except ImportError as error:
            raise EnvironmentProblem(
                'The extension "PyTorch" is not installed: install it with the Extensions Manager and restart Slicer.'
            ) from error
        logic = PyTorchUtils.PyTorchUtilsLogic()
        logic.installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
        state = inspectTorch()
        if state.state != READY:
            raise EnvironmentProblem(state.sentence)

    def _pip(self, arguments: "list[str]") -> None:
        self._onLog(f"PythonSlicer -m pip install {' '.join(arguments)}")
        slicer.packaging.pip_install(
            arguments,
            requester=REQUESTER,
            blocking=False,
            logCallback=self._onLog,
            completedCallback=lambda *_: self._guarded(self._verify),
        )

    def _verify(self) -> None:
        """pip has ended: what counts is what is there now."""
        wrong = [package.sentence for package in inspectPackages() if package.state != READY]
        self._onDone(" ".join(wrong) or None)

    def _guarded(self, work: Callable) -> None:
        try:
            work()
        except EnvironmentProblem as problem:
            self._onDone(str(problem))
        except Exception as error:
            logging.exception("SAMRegistration: installation")
            self._onLog(f"{type(error).__name__}: {error}")
            self._onDone(f"The installation failed: {error}")
