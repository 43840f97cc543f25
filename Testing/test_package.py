"""The shape of the library: its layers, what it may import, and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import SAMRegistrationLib

LIBRARY = Path(SAMRegistrationLib.__file__).parent
PACKAGE = LIBRARY.name
LONGEST_FILE = 320
SLICER_ONLY = {"slicer", "qt", "ctk", "vtk", "PythonQt", "mrml"}

LAYERS = [
    ["errors", "resources"],
    ["device", "files", "file_integrity", "memory_reuse", "shared_processors"],
    ["itk_files", "markups"],
    ["grid"],
    ["sampling"],
    ["resampling"],
    ["image"],
    ["transforms"],
    ["field"],
    ["transform_io"],
    ["dicom"],
    ["image_io"],
    ["points"],
    ["roi"],
    ["inputs", "warping"],
    ["body"],
    ["synthetic"],
    ["networks"],
    ["models"],
    ["features"],
    ["matching"],
    ["solvers"],
    ["alignment"],
    ["methods"],
    ["metrics"],
    ["tables"],
    ["report"],
    ["evaluation"],
    ["presets"],
    ["memory_estimate"],
    ["stages", "finish"],
    ["configuration"],
    ["chain"],
    ["pipeline"],
    ["refinement"],
    ["figure_scene"],
    ["figure"],
    ["training"],
    ["worker"],
    ["benchmark"],
    ["demo", "cohort", "doctor", "commands", "cli"],
    ["__main__"],
]
"""A module imports from its own layer and from those before it; the files of a folder count as one module."""

SELF_CONTAINED = {
    "solvers": {"torch"},
    "networks": {"torch"},
}
"""What folders may import besides themselves and the standard library."""


def library_files() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def name_of(file: Path) -> str:
    return str(file.relative_to(LIBRARY))


def module_of(file: Path) -> str:
    """The name in `LAYERS` that a file belongs to."""
    return file.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported_names(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute dotted names of everything that a file imports anywhere, with the line."""
    package = [PACKAGE, *file.relative_to(LIBRARY).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno


def imported_modules(file: Path) -> Iterator[tuple[str, int]]:
    """The names in `LAYERS` that a file imports, with the line."""
    for name, line in imported_names(file):
        top, *below = name.split(".")
        if top == PACKAGE and below and is_module(below[0]):
            yield below[0], line


def is_module(name: str) -> bool:
    return (LIBRARY / name).is_dir() or (LIBRARY / f"{name}.py").is_file()


def layer_of(module: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) if module in layer), None)


@pytest.mark.parametrize("file", library_files(), ids=name_of)
def test_a_module_imports_only_from_the_layers_above_it(file: Path) -> None:
    module = module_of(file)
    if module == "__init__":
        assert not list(imported_modules(file)), "the package itself loads everything on first use"
        return
    own = layer_of(module)
    assert own is not None, f"{module} has no place in the list of layers"
    for imported, line in imported_modules(file):
        other = layer_of(imported)
        assert other is not None, f"{imported} has no place in the list of layers"
        assert other <= own, f"line {line}: {module} must not import {imported}, which lies below it"


@pytest.mark.parametrize("file", library_files(), ids=name_of)
def test_the_library_knows_nothing_of_slicer(file: Path) -> None:
    assert not {name.split(".")[0] for name, _ in imported_names(file)} & SLICER_ONLY


@pytest.mark.parametrize("folder", SELF_CONTAINED)
def test_solvers_and_networks_import_nothing_but_torch_and_themselves(folder: str) -> None:
    allowed = SELF_CONTAINED[folder] | sys.stdlib_module_names
    for file in sorted((LIBRARY / folder).rglob("*.py")):
        for name, line in imported_names(file):
            top = name.split(".")[0]
            is_own = name.startswith(f"{PACKAGE}.{folder}")
            assert is_own or top in allowed, f"{name_of(file)}, line {line}: imports {name}"


@pytest.mark.parametrize("file", library_files(), ids=name_of)
def test_files_stay_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_the_layers_find_an_import_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "solvers").mkdir()
    (tmp_path / "grid.py").write_text("")
    (tmp_path / "solvers" / "__init__.py").write_text("")
    file = tmp_path / "solvers" / "wrong.py"
    file.write_text(f"def late():\n    from ..grid import Grid\n    import {PACKAGE}.solvers.ops\n")
    monkeypatch.setattr(f"{__name__}.LIBRARY", tmp_path)
    assert list(imported_modules(file)) == [("grid", 2), ("solvers", 3)]


def test_importing_the_package_loads_neither_torch_nor_anything_else_heavy() -> None:
    heavy = ("torch", "SimpleITK", "numpy", "scipy", "matplotlib")
    code = f"import sys, {PACKAGE}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_nouns_load_no_optional_package() -> None:
    code = (
        f"import sys; from {PACKAGE} import DisplacementField, read_transform; "
        "print([name for name in ('scipy', 'matplotlib', 'monai', 'tensorboard') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", SAMRegistrationLib.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(SAMRegistrationLib, name).__name__ == name
    assert name in dir(SAMRegistrationLib)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        SAMRegistrationLib.no_such_name  # noqa: B018
