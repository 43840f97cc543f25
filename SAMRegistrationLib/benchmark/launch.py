"""Start `peers.job` with any Python: `PYTHON launch.py FOLDER`.

This library's folder is made importable by itself, without what is installed beside it: another Python could not
use that, and must not take it for its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "SAMRegistrationLib"


def main() -> int:
    # The folder of this file must not hide installed packages whose names are like those of its files.
    sys.path.pop(0)
    package = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        NAME, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    job = importlib.import_module(f"{NAME}.benchmark.peers.job")
    return int(job.main(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
