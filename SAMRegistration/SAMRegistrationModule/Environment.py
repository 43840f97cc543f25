"""What is installed in Slicer's Python, looked at without loading any of it."""

import importlib.machinery
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST_SLICER = (5, 12)
OLDEST_TORCH = (2, 5)
LONGEST_WINDOWS_PREFIX = 100
"""Characters of Slicer's folder from which files of PyTorch exceed Windows' 260."""

DRIVER_SECONDS = 3.0
READY, MISSING, BROKEN, OLD = "ready", "missing", "broken", "old"
OTHER_PACKAGES = ("SimpleITK", "numpy", "safetensors")


class EnvironmentProblem(Exception):
    """Something about the installation; the message is a sentence that says what to do."""


@dataclass(frozen=True)
class PackageState:
    """One package: whether it can be used, and a sentence about it."""

    name: str
    state: str
    sentence: str


def inspectPackages() -> "list[PackageState]":
    """All packages that the worker needs."""
    return [inspectTorch(), *(inspectPackage(name) for name in OTHER_PACKAGES)]


def inspectPackage(name: str, paths: "list[str] | None" = None) -> PackageState:
    """Whether a package is there: its files as well as its metadata."""
    version = _version(name, paths)
    hasCode = _hasCode(name, paths)
    if version is None and not hasCode:
        return PackageState(name, MISSING, f"{name} is not installed: press Install.")
    if not hasCode:
        return PackageState(name, BROKEN, f"{name} is only half installed (no code): press Repair.")
    return PackageState(name, READY, f"{name} {version or ''}".strip())


def inspectTorch(paths: "list[str] | None" = None) -> PackageState:
    """Whether PyTorch is there, complete and new enough."""
    found = inspectPackage("torch", paths)
    if found.state != READY:
        return found
    version = _version("torch", paths)
    if version is None:
        return PackageState("torch", BROKEN, "torch is only half installed (no metadata): press Repair.")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return PackageState("torch", OLD, f"torch {version} is too old, {oldest} or newer is needed: press Repair.")
    return found


def removeHalfInstalled(name: str, sitePackages: "list[str] | None" = None) -> "list[Path]":
    """Delete what a broken installation left behind, which pip cannot: the folder and its metadata.

    Returns:
        What was deleted.
    """
    removed = []
    for folder in {Path(path) for path in (sitePackages if sitePackages is not None else sys.path)}:
        for each in [folder / name, *folder.glob(f"{name}-*.dist-info")]:
            if each.is_dir():
                shutil.rmtree(each)
                removed.append(each)
    importlib.invalidate_caches()
    return removed


def slicerProblem(slicer) -> "str | None":
    """Why this Slicer cannot install what is needed, as a sentence; None if it can."""
    if importlib.util.find_spec("slicer.packaging") is not None:
        return None
    application = getattr(slicer, "app", None)
    version = getattr(application, "applicationVersion", "this version")
    oldest = ".".join(map(str, OLDEST_SLICER))
    return (
        f"SAMRegistration installs its packages with Slicer {oldest} or newer; {version} lacks the means. Update "
        "Slicer, or install torch and safetensors yourself."
    )


def prefixWarning(prefix: str = sys.prefix, platform: str = sys.platform) -> "str | None":
    """A warning where Slicer's folder is so deep that PyTorch will not fit on Windows."""
    if platform != "win32" or len(prefix) < LONGEST_WINDOWS_PREFIX:
        return None
    return (
        f"Slicer lies in a folder of {len(prefix)} characters; PyTorch may not fit below it on Windows. Install "
        "Slicer into a short folder such as C:\\Slicer."
    )


def nvidiaDriver() -> "str | None":
    """The version of the NVIDIA driver, as its own tool tells it; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = told.stdout.split()
    return lines[0] if told.returncode == 0 and lines else None


def _version(name: str, paths: "list[str] | None") -> "str | None":
    search = {} if paths is None else {"path": paths}
    for distribution in importlib.metadata.distributions(name=name, **search):
        return distribution.version or None
    return None


def _hasCode(name: str, paths: "list[str] | None") -> bool:
    """Whether the package has an __init__; a folder without one is what a broken installation leaves."""
    finder = importlib.machinery.PathFinder.find_spec(name, paths)
    return finder is not None and finder.origin is not None
