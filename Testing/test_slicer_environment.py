"""What the module says about installations: found, half there, missing, and what each known failure asks for."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless_slicer.fixtures import mrml

__all__ = ["mrml"]


def install(folder: Path, name: str, version: str | None, code: bool) -> None:
    """A package as pip leaves it, or as half an installation leaves it."""
    (folder / name / "lib").mkdir(parents=True)
    if code:
        (folder / name / "__init__.py").write_text("raise RuntimeError('must not be loaded')")
    if version is not None:
        information = folder / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "code", "state", "sentence"),
    [
        ("2.13.0", True, "ready", "torch 2.13.0"),
        ("2.4.1", True, "old", "2.5 or newer is needed: press Repair"),
        ("2.13.0", False, "broken", "half installed .no code.: press Repair"),
        (None, True, "broken", "half installed .no metadata.: press Repair"),
    ],
)
def test_half_an_installation_is_told_from_a_whole_one(
    mrml: Any, tmp_path: Path, version: str | None, code: bool, state: str, sentence: str
) -> None:
    import re

    assert mrml is not None
    from SAMRegistrationModule.Environment import inspectTorch

    install(tmp_path, "torch", version, code)
    found = inspectTorch([str(tmp_path)])
    assert found.state == state and re.search(sentence, found.sentence)


def test_metadata_alone_is_half_an_installation(mrml: Any, tmp_path: Path) -> None:
    import shutil

    assert mrml is not None
    from SAMRegistrationModule.Environment import inspectTorch, removeHalfInstalled

    install(tmp_path, "torch", "2.13.0", False)
    shutil.rmtree(tmp_path / "torch")
    assert inspectTorch([str(tmp_path)]).state == "broken"
    install(tmp_path / "other", "torchvision", "0.30", True)
    assert removeHalfInstalled("torch", [str(tmp_path)]) == [tmp_path / "torch-2.13.0.dist-info"]
    assert inspectTorch([str(tmp_path)]).state == "missing"
    assert (tmp_path / "other" / "torchvision").is_dir()


def test_what_is_installed_here_is_found_without_loading_it(mrml: Any) -> None:
    assert mrml is not None
    from SAMRegistrationModule.Environment import READY, inspectPackages

    assert {package.name for package in inspectPackages()} == {"torch", "SimpleITK", "numpy", "safetensors"}
    assert all(package.state == READY for package in inspectPackages())


def test_an_older_slicer_is_asked_to_be_updated(mrml: Any) -> None:
    from SAMRegistrationModule.Environment import slicerProblem

    sentence = slicerProblem(mrml)
    assert sentence is not None and "5.12 or newer" in sentence and "Update Slicer" in sentence


def test_deep_folders_on_windows_are_warned_of(mrml: Any) -> None:
    assert mrml is not None
    from SAMRegistrationModule.Environment import prefixWarning

    assert "C:\\Slicer" in (prefixWarning("C:\\" + "x" * 110, "win32") or "")
    assert prefixWarning("C:\\Slicer", "win32") is None
    assert prefixWarning("/" + "x" * 200, "linux") is None


SYMPTOMS = [
    ("CUDA error: no kernel image is available for execution on the device", "built for other GPUs"),
    ("GPU with CUDA capability sm_120 is not compatible with the current PyTorch installation", "built for other"),
    ("OSError: [WinError 206] The filename or extension is too long", "short folder"),
    ("OSError: [WinError 126] Error loading fbgemm.dll", "Visual C++"),
    ("A module that was compiled using NumPy 1.x cannot be run in NumPy 2.3", "numpy<2"),
    ("CUDA driver version is insufficient for CUDA runtime version", "update the driver"),
    ("RuntimeError: cuDNN version incompatibility: PyTorch was compiled against 9", "Another cuDNN"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "Free memory"),
    ("the registration worker stopped unexpectedly (killed, as happens when memory runs out)", "lighter preset"),
    ("requests.exceptions.ProxyError: Cannot connect to proxy", "HTTPS_PROXY"),
    ("ssl.SSLError: CERTIFICATE_VERIFY_FAILED", "HTTPS_PROXY"),
    ("Temporary failure in name resolution", "no network"),
    ("ERROR: No matching distribution found for torch>=2.5", "no wheel"),
    ("OSError: [Errno 28] No space left on device", "disk is full"),
    ("PermissionError: [Errno 13] Permission denied: 'C:\\\\Program Files'", "may not write"),
    ("AttributeError: partially initialized module 'torch' has no attribute 'Tensor'", "press Repair"),
    ("ModuleNotFoundError: No module named 'safetensors'", "press Install"),
    ("WARNING: Possible incompatible factory load: MetaImageIO", "ITK_AUTOLOAD_PATH"),
    ("free(): invalid pointer", "crashed in the worker, not in Slicer"),
    ("the registration worker stopped unexpectedly (signal 11)", "crashed in the worker"),
    ("A restart is required to complete the installation", "restart Slicer once"),
]


@pytest.mark.parametrize(("symptom", "advice"), SYMPTOMS)
def test_every_known_failure_has_a_sentence(mrml: Any, symptom: str, advice: str) -> None:
    assert mrml is not None
    from SAMRegistrationModule.Failures import adviceFor

    sentence = adviceFor(["something before", symptom, "something after"])
    assert sentence is not None and advice in sentence


def test_every_sentence_is_reached_by_a_symptom(mrml: Any) -> None:
    assert mrml is not None
    from SAMRegistrationModule.Failures import KNOWN_FAILURES, adviceFor

    assert {adviceFor([symptom]) for symptom, _ in SYMPTOMS} == {sentence for _, sentence in KNOWN_FAILURES}
    assert adviceFor(["everything is fine", "stage affine: 3 s"]) is None


def test_the_log_is_only_asked_about_what_nobody_expected(mrml: Any) -> None:
    assert mrml is not None
    from SAMRegistrationModule.Failures import adviceOn

    log = ["ModuleNotFoundError: No module named 'safetensors'"]
    assert adviceOn("the volumes do not overlap", "Check them.", "input", log) == "Check them."
    died = adviceOn(
        "the registration worker stopped unexpectedly (exit status 1)", "Try again.", "worker-died", log
    )
    assert died is not None and "press Install" in died
    old = [*log, *["stage affine"] * 40]
    assert (
        adviceOn("the registration worker stopped unexpectedly", "Try again.", "worker-died", old) == "Try again."
    )


class Pip:
    """Slicer's packaging and the extension PyTorch, as far as the installer uses them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slicer: Any, with_torch_extension: bool = True) -> None:
        self.installed: list[Any] = []
        self.torch: list[dict] = []
        self.uninstalled: list[str] = []
        packaging = types.ModuleType("slicer.packaging")
        packaging.__spec__ = importlib.util.spec_from_loader("slicer.packaging", None)
        packaging.pip_install = self._install  # type: ignore[attr-defined]
        packaging.pip_uninstall = self.uninstalled.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
        monkeypatch.setattr(slicer, "packaging", packaging, raising=False)
        utils = types.ModuleType("PyTorchUtils")
        utils.PyTorchUtilsLogic = lambda: types.SimpleNamespace(  # type: ignore[attr-defined]
            installTorch=lambda **options: self.torch.append(options)
        )
        monkeypatch.setitem(sys.modules, "PyTorchUtils", utils if with_torch_extension else None)

    def _install(
        self, arguments: Any, *, requester: str, blocking: bool, logCallback: Any, completedCallback: Any
    ) -> None:
        assert requester == "SAMRegistration" and not blocking
        self.installed.append(arguments)
        logCallback("Collecting safetensors")
        completedCallback(0)


@pytest.fixture
def told() -> dict[str, list]:
    return {"log": [], "done": []}


@pytest.fixture
def make_installer(mrml: Any, told: dict[str, list]) -> Iterator[Any]:
    assert mrml is not None
    from SAMRegistrationModule.Installation import Installer

    yield lambda yes=True: Installer(lambda _: yes, told["log"].append, told["done"].append)


def states(monkeypatch: pytest.MonkeyPatch, **by_name: str) -> None:
    """What the inspection finds: the packages named are in another state than ready."""
    from SAMRegistrationModule import Installation
    from SAMRegistrationModule.Environment import READY, PackageState

    def inspect() -> list[PackageState]:
        names = ("torch", "SimpleITK", "numpy", "safetensors")
        return [PackageState(name, by_name.get(name, READY), f"{name} is {by_name.get(name)}.") for name in names]

    monkeypatch.setattr(Installation, "inspectPackages", inspect)
    monkeypatch.setattr(Installation, "inspectTorch", lambda: inspect()[0])


def test_torch_comes_from_its_extension_and_the_rest_from_slicer(
    mrml: Any, make_installer: Any, told: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch, mrml)
    states(monkeypatch, safetensors="missing")
    make_installer().install()
    assert pip.installed == [["safetensors>=0.4"]] and not pip.torch
    assert told["done"] == ["safetensors is missing."], "what counts is what is there afterwards"
    assert any("pip install safetensors>=0.4" in line for line in told["log"])
    states(monkeypatch, torch="missing")
    make_installer().install()
    assert pip.torch == [{"askConfirmation": True, "torchVersionRequirement": ">=2.5"}]


def test_nothing_is_installed_against_the_users_will(
    mrml: Any, make_installer: Any, told: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch, mrml)
    states(monkeypatch, safetensors="missing")
    make_installer(yes=False).install()
    make_installer(yes=False).repair()
    assert not pip.installed and not pip.uninstalled
    assert told["done"] == ["Nothing was installed, as you wished.", "Nothing was changed, as you wished."]


def test_a_missing_pytorch_extension_is_named(
    mrml: Any, make_installer: Any, told: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    Pip(monkeypatch, mrml, with_torch_extension=False)
    states(monkeypatch, torch="missing")
    make_installer().install()
    assert "Extensions Manager" in told["done"][0]


def test_repairing_removes_the_broken_one_first(
    mrml: Any, make_installer: Any, told: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    from SAMRegistrationModule import Installation

    pip = Pip(monkeypatch, mrml)
    removed: list[str] = []
    monkeypatch.setattr(Installation, "removeHalfInstalled", lambda name: removed.append(name) or [])
    states(monkeypatch)
    make_installer().repair()
    assert pip.uninstalled == ["torch torchvision"] and removed == ["torch", "torchvision"]
    assert told["done"] == [None]


def test_an_offline_folder_is_used_without_a_network(
    mrml: Any, make_installer: Any, told: dict[str, list], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip = Pip(monkeypatch, mrml)
    states(monkeypatch)
    make_installer().installFrom(str(tmp_path))
    assert "holds no wheel of torch" in told["done"][0] and "pip download" in told["done"][0]
    (tmp_path / "torch-2.13.0-cp312-cp312-linux_x86_64.whl").touch()
    make_installer().installFrom(str(tmp_path))
    expected = ["--no-index", "--find-links", str(tmp_path), "torch>=2.5", "safetensors>=0.4"]
    assert pip.installed == [expected] and told["done"][1] is None


def test_slicer_5_10_gets_a_clear_answer(make_installer: Any, told: dict[str, list]) -> None:
    make_installer().install()
    assert "5.12 or newer" in told["done"][0]
