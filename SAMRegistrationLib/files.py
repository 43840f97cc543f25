"""Outputs that appear complete or not at all, and checksums of inputs.

Everything is written into a hidden folder beside its place, on the same file system, and renamed when complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

STAGING_PREFIX = ".samreg-"
_CHUNK = 1 << 20
_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be too large for this disk",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "part of that path is a file, not a folder",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENAMETOOLONG: "the name is too long",
}


def write_error(path: Path, error: OSError) -> InputError:
    """The sentence for a failed attempt to write `path`."""
    reason = _WRITE_ERRORS.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"cannot write {path}: {reason}")


def require_writable_folder(folder: str | Path, needed_bytes: int = 0) -> None:
    """Check, before long work and without creating anything, that results can be written into `folder`.

    Raises:
        InputError: if the folder is a file, may not be written or created, or its disk has too little room.
    """
    folder = Path(folder).absolute()
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"cannot write into {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {folder}: no permission to write in {existing}")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"cannot write into {folder}: {needed_bytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free"
        )


@contextmanager
def staged_outputs(folder: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A hidden folder to write into, whose files move into `folder` together once the block ends without error.

    Files of the same name are replaced. On any error or interrupt nothing is left behind: what had moved is taken
    back, replaced files return, and folders created for the output are removed.

    Args:
        folder: where the outputs shall appear; created, with its parents, if it is not there.
        needed_bytes: refuse at once if the disk has less room than this.

    Raises:
        InputError: if the folder cannot be written or the disk is full.
    """
    folder = Path(folder).absolute()
    require_writable_folder(folder, needed_bytes)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    complete = False
    try:
        staging = _create_staging(folder)
        try:
            yield staging
            _publish(staging, folder)
            complete = True
        except OSError as error:
            if not _is_about_writing(error, folder):
                raise
            raise write_error(folder, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        if not complete:
            _remove_empty(created)


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """A path of the same name to write to, which replaces `path` once the block ends without error.

    What the writer puts beside it (the raw file of a detached header) moves along. Errors as `staged_outputs`.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise InputError(f"cannot write {path}: a folder of that name is in the way")
    with staged_outputs(path.parent) as staging:
        yield staging / path.name


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, complete or not at all.

    Raises:
        InputError: if it cannot be written.
    """
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files regardless of their names, in hexadecimal.

    Raises:
        InputError: if it is missing or cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return _file_checksum(path)
        members = sorted(_file_checksum(file) for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return hashlib.sha256("".join(members).encode()).hexdigest()


def _file_checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _create_staging(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_staging_prefix(os.getpid()), dir=folder))
    except OSError as error:
        raise write_error(folder, error) from error


def _staging_prefix(process: int) -> str:
    return f"{STAGING_PREFIX}{process}-"


def remove_staging(folder: str | Path, process: int) -> None:
    """Remove what a process that was killed while it wrote left of `staged_outputs` in a folder.

    Args:
        folder: where it wrote; need not exist.
        process: its id.
    """
    for left in Path(folder).glob(f"{_staging_prefix(process)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _publish(staging: Path, folder: Path) -> None:
    """Move every staged file to its place, the last written last; on failure put everything back."""
    staged = sorted(staging.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for file in staged:
        _flush_to_disk(file)
    replaced = Path(tempfile.mkdtemp(dir=staging))
    moved: list[Path] = []
    try:
        for file in staged:
            target = folder / file.name
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            if target.exists():
                _keep(target, replaced / file.name)
            moved.append(target)
            file.replace(target)
    except BaseException:
        for target in moved:
            _restore(replaced / target.name, target)
        raise


def _flush_to_disk(file: Path) -> None:
    """Make a network file system report now what it would otherwise report after the rename, or never."""
    if file.is_file():
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())


def _keep(target: Path, backup: Path) -> None:
    try:
        os.link(target, backup)
    except OSError:  # a file system without hard links
        shutil.copy2(target, backup)


def _restore(previous: Path, target: Path) -> None:
    if previous.exists():
        previous.replace(target)
    else:
        target.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _is_about_writing(error: OSError, folder: Path) -> bool:
    """Whether an error comes from writing outputs; a failed write of data carries no file name."""
    if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error.errno in _WRITE_ERRORS
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder)
