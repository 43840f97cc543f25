"""Training the query point network stays on one device: a GPU would refuse to mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_volumes import write_manifest

from SAMRegistrationLib.methods.quiz import QuizAnswers, Quizzer
from SAMRegistrationLib.models.quiz import QuizModel
from SAMRegistrationLib.networks.quiz import Quiz
from SAMRegistrationLib.training.cache import CachedVolume, build_cache
from SAMRegistrationLib.training.distributed import Processes
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.training.quiz_config import RECIPES
from SAMRegistrationLib.training.quiz_losses import quiz_loss
from SAMRegistrationLib.training.quiz_pairs import QuizPairs
from SAMRegistrationLib.training.quiz_views import prepare_views, read_view, view_file
from Testing.other_device import OtherTensor, other_device

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RECIPES["gpu"].changed(
    {
        "network": {"channels": 16, "widths": [8, 8, 16, 16], "layers": 1, "heads": 2, "content_queries": True}
        | {"embedding_channels": 4, "pointing": True},
        "views": {"most_voxels": 200000},
        "pairs": {"image_size": 16, "embedding_size": 4, "queries": 20},
    }
)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[CachedVolume]:
    manifest = write_manifest(tmp_path_factory.mktemp("volumes"), 2)
    return build_cache(read_manifest(manifest), tmp_path_factory.mktemp("cache"), 2.0).volumes


@pytest.fixture(scope="module")
def views(volumes: list[CachedVolume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    list(prepare_views(volumes, folder, None, 2, 1, CONFIG.views))
    for file in folder.glob("*.npz"):
        stored = dict(np.load(file))
        noise = np.random.default_rng(0).normal(size=(4, *stored["visible"].shape))
        np.savez(file, **stored, embedding=noise.astype(np.float16))
    return folder


def network_on(device: torch.device) -> Quiz:
    """The same random network on any device; on the stand-in its parameters become plain tensors."""
    torch.manual_seed(0)
    network = Quiz(**CONFIG.network)
    if device.type != "cpu":
        for module in network.modules():
            for name, value in [*module.named_parameters(recurse=False)]:
                del module._parameters[name]
                setattr(module, name, value.detach().to(device))
    return network


def test_views_are_made_on_the_device_and_equal_those_of_the_cpu(
    volumes: list[CachedVolume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(prepare_views(volumes, tmp_path / "cpu", None, 2, 1, CONFIG.views))
    with other_device(monkeypatch) as device:
        list(prepare_views(volumes, tmp_path / "there", None, 2, 1, CONFIG.views, Processes(device=device)))
    files = sorted((tmp_path / "cpu").glob("*.npz"))
    assert len(files) == 4
    for file in files:
        expected, found = np.load(file), np.load(tmp_path / "there" / file.name)
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name], name)


def test_every_process_makes_its_share_of_the_views(volumes: list[CachedVolume], tmp_path: Path) -> None:
    made = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        list(prepare_views(volumes, folder, None, 2, 1, CONFIG.views, Processes(rank, 2)))
        made.append({file.name for file in folder.glob("*.npz")})
    assert len(made[0]) == len(made[1]) == 2 and len(made[0] | made[1]) == 4


def test_pairs_and_losses_stay_on_the_device_and_equal_those_of_the_cpu(
    volumes: list[CachedVolume], views: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG.loss, translation_from=0.0)

    def losses(device: torch.device) -> dict[str, torch.Tensor]:
        network = network_on(device)
        pairs = QuizPairs(volumes, views, 2, CONFIG.pairs, True, device)
        pair = pairs.draw(2, torch.Generator().manual_seed(1)).to(device)
        answers = network(pair.reference, pair.search, pair.queries, pair.embeddings)
        total, parts = quiz_loss(answers, pair, config, with_translation=True)
        return {"total": total, **parts}

    expected = losses(torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = losses(device)
    assert expected.keys() == found.keys() >= {"distance", "offset", "translation", "confidence", "pointing"}
    for name, value in expected.items():
        other = found[name]
        assert isinstance(other, OtherTensor), name
        torch.testing.assert_close(other.on_cpu, value.detach(), msg=name)


def test_points_are_asked_on_the_device_and_answered_as_on_the_cpu(
    volumes: list[CachedVolume], views: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = np.random.default_rng(0).uniform(20, 80, size=(30, 3))

    def answers(device: torch.device) -> QuizAnswers:
        seen = [read_view(views / view_file(volumes[0], n), volumes[0], device) for n in range(2)]
        assert seen[0] is not None and seen[1] is not None
        model = QuizModel("small", network_on(device), 16, 4, "sam")
        return Quizzer(model, seen[0].volume, seen[1].volume, device).ask(asked)

    expected = answers(torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = answers(device)
    np.testing.assert_allclose(found.matched, expected.matched, atol=1e-3)
    np.testing.assert_allclose(found.sigma_mm, expected.sigma_mm, rtol=1e-4)
