"""The models that are on this computer, as the panel lists them: read without loading torch."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelText:
    """A model's name, license, size and origin; `removable` if the user added it."""

    name: str
    license: str
    megabytes: float
    trainedOn: str
    removable: bool
    folder: Path
    file: str


def installedModels() -> "list[ModelText]":
    """Models that come with the extension, then those that the user added."""
    from SAMRegistrationLib.models.folders import CATALOGUE_FILE, SHIPPED_FOLDER, user_folder

    found = []
    for folder, removable in ((SHIPPED_FOLDER, False), (user_folder(), True)):
        for entry in _entries(folder / CATALOGUE_FILE):
            weights = folder / Path(entry["file"]).name
            size = weights.stat().st_size / 1e6 if weights.is_file() else 0.0
            texts = (entry["name"], entry.get("licence", ""), size, entry.get("training_data", ""))
            found.append(ModelText(*texts, removable, folder, weights.name))
    return found


def deleteModel(model: ModelText) -> None:
    """Remove a model of the user: its entry first, then its weights.

    Raises:
        OSError: if the folder cannot be written.
    """
    from SAMRegistrationLib.models.folders import CATALOGUE_FILE

    if not model.removable:
        raise PermissionError(f"{model.name} comes with the extension and stays")
    catalogue = model.folder / CATALOGUE_FILE
    others = [entry for entry in _entries(catalogue) if entry["name"] != model.name]
    temporary = catalogue.with_suffix(".part")
    temporary.write_text(json.dumps({"models": others}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(catalogue)
    (model.folder / model.file).unlink(missing_ok=True)


def _entries(catalogue: Path) -> list:
    try:
        return json.loads(catalogue.read_text(encoding="utf-8"))["models"]
    except (OSError, ValueError, KeyError):
        return []
