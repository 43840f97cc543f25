"""Programs that users build or install themselves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .contract import NotInstalled, Task


def find_program(name: str, task: Task | None, variable: str, hint: str) -> str:
    """A program in the folder of the setting `folder`, in that of an environment variable, or on the path.

    Raises:
        NotInstalled: if it is nowhere; `hint` says how to get it.
    """
    folder = (task.settings.get("folder") if task else None) or os.environ.get(variable)
    found = shutil.which(name, path=str(folder)) if folder else shutil.which(name)
    if found is None:
        where = f"in {folder}" if folder else "on the path"
        raise NotInstalled(f"{name} is not {where}: {hint}")
    return str(Path(found).absolute())
