"""Running `samreg` within the process, with what it printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from SAMRegistrationLib.cli import main


def files_below(folder: Path) -> set[Path]:
    """Every file and folder below a folder, hidden ones too."""
    return set(folder.rglob("*"))


def refused(arguments: Sequence[str | Path], status: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with `status`, one sentence on stderr and nothing written below `folder`.

    Returns:
        The sentence.
    """
    there_before = files_below(folder)
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert files_below(folder) == there_before
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("samreg: "), printed.err
    assert "Traceback" not in lines[0]
    return lines[0]
