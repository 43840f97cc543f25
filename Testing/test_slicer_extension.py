"""The extension as Slicer's index and package builder see it: lists, catalogue, metadata, size."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "SAMRegistration"
PARTS = sorted((MODULE / "SAMRegistrationModule").glob("*.py"))
CMAKE = (ROOT / "CMakeLists.txt").read_text()
CATALOGUE = json.loads((ROOT / "SAMRegistration.json").read_text())

CATEGORIES = {"Registration"}
CATALOGUE_KEYS = {
    "$schema": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "category": str,
    "dicom_support_rule": str,
    "enabled": bool,
    "scm_revision": str,
    "scm_url": str,
    "tier": int,
}
"""All keys that the index's schema 1.0.2 knows, with their types."""


def listed(name: str) -> list[str]:
    """The entries of a list in the module's CMake file."""
    text = (MODULE / "CMakeLists.txt").read_text()
    found = re.search(rf"set\({name}\n(.*?)\n *\)", text, re.DOTALL)
    assert found, f"there is no list {name}"
    return [line.strip().replace("${MODULE_NAME}", "SAMRegistration") for line in found[1].splitlines()]


def metadata(name: str) -> str:
    """A value that the index reads from the top CMake file: one line, in quotes."""
    found = re.search(rf'^set\({name} "(.*)"\)$', CMAKE, re.MULTILINE)
    assert found, f"{name} is not set in one line"
    return found[1]


def files_below(folder: Path, *suffixes: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (not suffixes or path.name.endswith(suffixes))
    }


def test_every_file_of_the_library_is_packaged() -> None:
    files = files_below(ROOT / "SAMRegistrationLib", ".py", ".json", ".safetensors", "py.typed")
    assert set(listed("LIBRARY_FILES")) == files


def test_every_script_of_the_module_is_packaged() -> None:
    files = {path.removeprefix("SAMRegistration/") for path in files_below(MODULE, ".py")}
    assert set(listed("MODULE_PYTHON_SCRIPTS")) == files


def test_every_resource_of_the_module_is_packaged() -> None:
    files = {path.removeprefix("SAMRegistration/") for path in files_below(MODULE / "Resources")}
    assert set(listed("MODULE_PYTHON_RESOURCES")) == files


def test_the_sample_volumes_are_packaged_with_their_licenses() -> None:
    files = {path for path in files_below(ROOT / "Resources" / "SampleData") if "_labels" not in path}
    assert set(listed("SAMPLE_FILES")) == files


def test_installed_files_are_found_from_the_module(tmp_path: Path) -> None:
    """Laid out as the package is: the module's scripts, the library and the samples in one folder."""
    import shutil

    installed = tmp_path / "qt-scripted-modules"
    shutil.copytree(MODULE / "SAMRegistrationModule", installed / "SAMRegistrationModule")
    shutil.copytree(MODULE / "Resources", installed / "Resources")
    for file in (*listed("SAMPLE_FILES"), "SAMRegistrationLib/__init__.py"):
        (installed / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, installed / file)
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); sys.modules['slicer'] = sys.modules['vtk'] = sys; "
        "from SAMRegistrationModule.Library import makeLibraryImportable; makeLibraryImportable(); "
        "import SAMRegistrationLib; from SAMRegistrationModule.SampleVolumes import sampleFolder; "
        "print(SAMRegistrationLib.__file__, sampleFolder())"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    library, samples = result.stdout.split()
    assert library.startswith(str(installed)) and samples.startswith(str(installed))


def test_files_stay_as_short_as_they_shall_be() -> None:
    assert len((MODULE / "SAMRegistration.py").read_text().splitlines()) <= 250
    for file in PARTS:
        assert len(file.read_text().splitlines()) <= 300, file.name


@pytest.mark.parametrize("file", [MODULE / "SAMRegistration.py", *PARTS], ids=lambda path: path.stem)
def test_files_import_nothing_heavy_when_they_are_loaded(file: Path) -> None:
    allowed = {"slicer", "vtk", "SAMRegistrationModule", *sys.stdlib_module_names}
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            names = [statement.module or ""]
        else:
            continue
        for name in names:
            assert name.split(".")[0] in allowed, f"{file.name} imports {name} when it is loaded"


@pytest.mark.parametrize("file", [MODULE / "SAMRegistration.py", *PARTS], ids=lambda path: path.stem)
def test_torch_is_never_imported_in_slicer(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"torch", "SimpleITK", "safetensors"}


LAYERS = [
    {"Lazy", "Library"},
    {"Geometry"},
    {"Flattening", "VolumeFiles", "Markups", "Tables", "LandmarkFit"},
    {"Segmentations", "TransformNodes", "PointPairs"},
    {"OutputNodes", "Jobs", "Requests", "Review", "RefinementHistory"},
    {"Refinement", "PointTable"},
    {"Worker", "Presets", "Models", "SampleVolumes", "SelfTest", "Failures", "Environment"},
    {"JobRunner", "ProcessTransport", "Installation"},
    {"PointQueries"},
    {"RegistrationLogic", "Dialogs", "RegionList", "SectionJob"},
    {"ApplySection", "PresetSection", "ReviewSection", "EvaluateSection", "EnvironmentSection", "PointsSection"},
    {"RefineSection"},
    {"Panel"},
]


@pytest.mark.parametrize("file", PARTS, ids=lambda path: path.stem)
def test_a_part_imports_only_from_the_layers_above_it(file: Path) -> None:
    if file.stem == "__init__":
        return
    own = next(number for number, layer in enumerate(LAYERS) if file.stem in layer)
    for name in re.findall(r"^ *from \.(\w+) import", file.read_text(), re.MULTILINE):
        other = next(number for number, layer in enumerate(LAYERS) if name in layer)
        assert other <= own, f"{file.stem} must not import {name}"


def test_the_catalogue_entry_follows_the_schema() -> None:
    assert set(CATALOGUE) == set(CATALOGUE_KEYS)
    for key, kind in CATALOGUE_KEYS.items():
        assert isinstance(CATALOGUE[key], kind), key
    assert CATALOGUE["category"] in CATEGORIES and CATALOGUE["tier"] in (1, 3, 5)
    assert re.fullmatch(r"https://github\.com/[\w-]+/Slicer\w+\.git", CATALOGUE["scm_url"])
    assert re.search(r"schema-v1\.0\.2\.json#$", CATALOGUE["$schema"])


def test_names_follow_the_rules_of_the_index() -> None:
    project = re.search(r"^project\((\w+)\)", CMAKE, re.MULTILINE)
    assert project and project[1] == "SAMRegistration" and not project[1].startswith("Slicer")
    repository = CATALOGUE["scm_url"].removesuffix(".git")
    assert repository.rpartition("/")[2].startswith("Slicer")
    assert metadata("EXTENSION_HOMEPAGE") == repository
    assert metadata("EXTENSION_DEPENDS").split() == CATALOGUE["build_dependencies"]
    assert len(metadata("EXTENSION_DESCRIPTION")) > 100
    assert metadata("EXTENSION_CONTRIBUTORS") and metadata("EXTENSION_KEYWORDS")


def test_pictures_of_the_index_lie_where_their_addresses_say() -> None:
    repository = CATALOGUE["scm_url"].removesuffix(".git").replace("github.com", "raw.githubusercontent.com")
    addresses = [metadata("EXTENSION_ICONURL"), *metadata("EXTENSION_SCREENSHOTURLS").split()]
    for address in addresses:
        prefix = f"{repository}/{CATALOGUE['scm_revision']}/"
        assert address.startswith(prefix)
        picture = (ROOT / address.removeprefix(prefix)).read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    icon = (MODULE / "Resources" / "Icons" / "SAMRegistration.png").read_bytes()
    assert [int.from_bytes(icon[place : place + 4], "big") for place in (16, 20)] == [128, 128]


def test_the_license_lies_where_the_index_looks() -> None:
    license_ = (ROOT / "LICENSE.txt").read_text()
    assert "Apache License" in license_ and license_ == (ROOT / "LICENSE").read_text()


def test_a_clone_stays_below_the_limit_of_the_index() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no copy of the repository")

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout

    sizes = re.findall(r"^(?:size|size-pack): (\d+)", git("count-objects", "-v"), re.MULTILINE)
    kilobytes = sum(int(number) for number in sizes)
    tracked = [ROOT / name for name in git("ls-files", "-z").split("\0") if name]
    tree = sum(path.stat().st_size for path in tracked if path.is_file())
    assert kilobytes * 1000 + tree < 100e6


def test_requirements_are_lower_bounds_and_leave_torch_to_its_extension() -> None:
    from headless_slicer.fixtures import make_module_importable

    make_module_importable()
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from SAMRegistrationModule.Installation import requirements

    assert requirements() == ["safetensors>=0.4"]


def test_preset_times_belong_to_presets() -> None:
    from SAMRegistrationLib.presets import preset_names

    times = json.loads((MODULE / "Resources" / "PresetTimes.json").read_text())
    assert times["seconds"] and set(times["seconds"]) <= set(preset_names())
    assert times["volumes"] and times["machine"]
