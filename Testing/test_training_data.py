"""Manifests and the cache of prepared volumes: what is refused, what is skipped, and that geometry is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.training.cache import build_cache
from SAMRegistrationLib.training.manifest import read_manifest
from Testing.training_volumes import write_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("volumes"))


def test_more_than_a_tenth_of_unusable_volumes_is_an_error_that_names_them(tmp_path):
    missing = {"name": "gone", "file": "gone.nii.gz", "modality": "CT"}
    manifest = write_manifest(tmp_path, 3, (missing,))
    with pytest.raises(InputError, match=r"1 of 4 volumes .* gone \(.*gone.nii.gz"):
        build_cache(read_manifest(manifest), tmp_path / "cache", 2.0)


@pytest.mark.parametrize("content", ['{"items": []}', "[]", "{", '{"items": [{"file": "a"}]}'])
def test_a_manifest_without_volumes_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(InputError, match="manifest"):
        read_manifest(path)


def test_the_cache_is_filled_once(manifest, tmp_path):
    first = build_cache(read_manifest(manifest), tmp_path, 2.0)
    stamp = (tmp_path / "v0.npy").stat().st_mtime_ns
    second = build_cache(read_manifest(manifest), tmp_path, 2.0)
    assert (tmp_path / "v0.npy").stat().st_mtime_ns == stamp
    assert first == second


def test_the_cache_keeps_world_geometry_whatever_the_orientation(manifest, tmp_path):
    """A structure's centroid, measured from the corner of the box, does not depend on how the volume is stored."""
    volume = read_manifest(manifest)[0]
    turned = tmp_path / "turned"
    turned.mkdir()
    for path in (volume.path, volume.labels[0].path):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "SRA"), str(turned / path.name))
    (turned / "manifest.json").write_text((manifest.parent / "manifest.json").read_text())
    again = read_manifest(turned / "manifest.json")[0]
    reference = build_cache([volume], tmp_path / "a", 2.0).volumes[0]
    other = build_cache([again], tmp_path / "b", 2.0).volumes[0]
    np.testing.assert_array_equal(reference.image(), other.image())
    assert reference.landmarks == other.landmarks


@pytest.mark.slow
def test_several_processes_prepare_what_one_does(manifest, tmp_path):
    volumes = read_manifest(manifest)
    alone, together = (build_cache(volumes, tmp_path / str(count), 2.0, processes=count) for count in (1, 2))
    assert alone.structures == together.structures
    for one, other in zip(alone.volumes, together.volumes, strict=True):
        assert (one.name, one.landmarks) == (other.name, other.landmarks)
        np.testing.assert_array_equal(one.image(), other.image())
        np.testing.assert_array_equal(one.labels(), other.labels())
