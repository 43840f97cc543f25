"""Outputs appear complete or not at all; checksums tell inputs apart."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from SAMRegistrationLib import files
from SAMRegistrationLib.errors import Cancelled, InputError
from SAMRegistrationLib.files import checksum, require_writable_folder, staged_file, staged_outputs, write_text

needs_posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions and limits")
not_as_root = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="permissions do not bind the superuser"
)


def test_staged_files_appear_together_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with staged_outputs(out) as staging:
        (staging / "one.txt").write_text("1")
        (staging / "two.txt").write_text("2")
        assert not (out / "one.txt").exists()
        assert staging.parent == out and staging.name.startswith(".")
    assert sorted(path.name for path in out.iterdir()) == ["one.txt", "two.txt"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, Cancelled])
def test_nothing_is_left_of_an_interrupted_output_not_even_its_folders(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    with pytest.raises(interruption), staged_outputs(tmp_path / "a" / "b") as staging:
        (staging / "one.txt").write_text("1")
        raise interruption("stop")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_output_keeps_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("before")
    with pytest.raises(RuntimeError), staged_outputs(tmp_path) as staging:
        (staging / "one.txt").write_text("after")
        raise RuntimeError("stop")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("one.txt", "before")]


def test_a_failure_between_two_renames_takes_the_first_one_back(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("before")
    (tmp_path / "three.txt").mkdir()
    with (
        pytest.raises(InputError, match="a folder of that name is in the way"),
        staged_outputs(tmp_path) as staging,
    ):
        for order, name in enumerate(["one.txt", "two.txt", "three.txt"]):
            (staging / name).write_text("after")
            os.utime(staging / name, ns=(order, order))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.txt", "three.txt"]
    assert (tmp_path / "one.txt").read_text() == "before"


def test_replaced_files_get_back_even_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(files.os, "link", no_links)
    test_a_failure_between_two_renames_takes_the_first_one_back(tmp_path)


def test_a_file_in_place_of_the_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is not a folder"), staged_outputs(tmp_path / "taken" / "out"):
        pytest.fail("the block must not run")


def test_a_disk_without_enough_room_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MB are needed and .* MB are free"):
        require_writable_folder(tmp_path / "out", needed_bytes=1 << 60)
    with pytest.raises(InputError, match="MB are needed"), staged_outputs(tmp_path / "out", needed_bytes=1 << 60):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota")])
def test_a_disk_that_fills_up_while_writing_is_an_input_error(tmp_path: Path, code: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason), staged_outputs(tmp_path / "out") as staging:
        (staging / "half.bin").write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_reading_something_else_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_outputs(tmp_path / "out"):
        (tmp_path / "absent").read_text()


@needs_posix
@not_as_root
def test_a_folder_without_permission_is_an_input_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="no permission"), staged_outputs(tmp_path / "out"):
            pytest.fail("the block must not run")
    finally:
        tmp_path.chmod(0o700)


@needs_posix
def test_an_image_that_outgrows_the_disk_is_refused_though_itk_says_nothing(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk; ITK's NIfTI writer ignores both."""
    script = """
import resource, signal, sys
import numpy as np, SimpleITK as sitk
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.itk_files import write_sitk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
values = np.random.default_rng(0).integers(0, 30000, (32, 32, 32)).astype(np.int16)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
    try:
        write_sitk(sitk.GetImageFromArray(values), f"{sys.argv[1]}/out/image{suffix}")
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.count("disk is full") == 4
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_detached_header_brings_its_data_file_along(tmp_path: Path) -> None:
    with staged_file(tmp_path / "image.mhd") as staged:
        staged.write_text("header")
        staged.with_suffix(".raw").write_text("data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.mhd", "image.raw"]


def test_text_is_written_as_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", "µ\nm\n")
    assert (tmp_path / "text.txt").read_bytes() == b"\xc2\xb5\nm\n"


def test_the_checksum_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abc" * 1_000_000)
    assert checksum(tmp_path / "data") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_the_checksum_of_a_folder_depends_on_contents_and_not_on_names(tmp_path: Path) -> None:
    for folder, contents in {"a": ["1", "2"], "b": ["2", "1"], "c": ["1", "3"]}.items():
        (tmp_path / folder).mkdir()
        for name, content in zip("xy", contents, strict=True):
            (tmp_path / folder / name).write_text(content)
    assert checksum(tmp_path / "a") == checksum(tmp_path / "b") != checksum(tmp_path / "c")


def test_the_checksum_of_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        checksum(tmp_path / "absent")
