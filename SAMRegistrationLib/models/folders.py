"""Where models are kept: those shipped with the package beside this file, the user's in a place of their own.

The standard library alone, so that a host without torch can list models.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SHIPPED_FOLDER = Path(__file__).parent
USER_FOLDER_VARIABLE = "SAMREG_MODELS"
CATALOGUE_FILE = "catalogue.json"


def user_folder() -> Path:
    """Where imported models are kept; it need not exist."""
    chosen = os.environ.get(USER_FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "samreg" / "models"


def installed_architectures() -> set[str]:
    """The architectures that there are weights for; a catalogue that cannot be read counts as empty."""
    found = set()
    for folder in (SHIPPED_FOLDER, user_folder()):
        try:
            entries = json.loads((folder / CATALOGUE_FILE).read_text(encoding="utf-8"))["models"]
            found |= {entry["architecture"] for entry in entries if (folder / Path(entry["file"]).name).is_file()}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
