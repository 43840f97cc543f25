"""A query point network that reads an embedding trained further as it read the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_quiz_network import OURS, SMALL, embeddings, queries, volumes
from training_volumes import write_manifest

from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.networks.quiz import Quiz
from SAMRegistrationLib.training.cache import build_cache
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.training.quiz_refit import adapt, embedding_map, linear_map

pytestmark = pytest.mark.usefixtures("one_thread")

MIXING = torch.randn(6, 6, generator=torch.Generator().manual_seed(5)) + 3 * torch.eye(6)


class Pooled:
    """Six channels of a volume at 16 mm, mixed by a matrix."""

    def __init__(self, mixing: torch.Tensor) -> None:
        self.mixing = mixing

    def extract(self, image: Image) -> Features:
        small = torch.nn.functional.avg_pool3d(image.tensor(), 8)[0, 0] / 1000
        powers = torch.stack([small**n for n in range(6)])
        depth, height, width = small.shape
        grid = Grid((width, height, depth), (16.0,) * 3, (7.0,) * 3)
        return Features(FeatureMap(torch.einsum("ij,jzyx->izyx", self.mixing, powers)[None], grid), None)


def test_the_map_between_embeddings_is_found_from_volumes(tmp_path: Path) -> None:
    cached = build_cache(read_manifest(write_manifest(tmp_path, 2)), tmp_path / "cache", 2.0).volumes
    old, new = Pooled(torch.eye(6)), Pooled(MIXING)
    found = embedding_map(cached, old, new)
    image = torch.rand(1, 1, 32, 32, 32) * 500
    given = Image(image[0, 0], Grid((32, 32, 32), (2.0,) * 3), "int16", "CT")
    first, second = (each.extract(given).fine.data[0].flatten(1) for each in (old, new))
    # The ridge costs a little along directions that hardly occur.
    assert (found @ second - first).norm() < 0.2 * first.norm()


def test_an_exact_map_is_met_but_for_the_ridge() -> None:
    old = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear_map(old @ MIXING.T, old) @ MIXING, torch.eye(6), rtol=0, atol=0.06)


def test_an_adapted_network_sees_in_the_new_embedding_what_it_saw_in_the_old_one() -> None:
    torch.manual_seed(0)
    # Without the pointing head, which compares vectors of whichever embedding as they are.
    network = Quiz(**{**OURS, "pointing": False}).eval()
    old = embeddings()
    new = tuple(torch.einsum("ij,bjzyx->bizyx", MIXING, each) for each in old)
    with torch.no_grad():
        expected = network(*volumes(), queries(20), old).displacement
        changed = network(*volumes(), queries(20), (new[0], new[1])).displacement
        adapt(network, torch.linalg.inv(MIXING))
        found = network(*volumes(), queries(20), (new[0], new[1])).displacement
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert (changed - expected).abs().max() > 1e-3


def test_a_network_without_embedding_has_nothing_to_adapt() -> None:
    with pytest.raises(ValueError, match="no embedding"):
        adapt(Quiz(**SMALL), MIXING)
