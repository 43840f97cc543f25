"""Where the library SAMRegistrationLib is."""

import importlib.util
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def makeLibraryImportable() -> None:
    """Let the library be found where the module runs from a copy of the repository.

    An installed extension has both packages in one folder, where nothing needs to be done.
    """
    if importlib.util.find_spec("SAMRegistrationLib") is None and (REPOSITORY / "SAMRegistrationLib").is_dir():
        sys.path.append(str(REPOSITORY))
