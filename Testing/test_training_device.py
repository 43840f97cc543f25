"""Drawing views and comparing them stays on one device: a GPU would refuse to mix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from SAMRegistrationLib.training.batches import BatchSource
from SAMRegistrationLib.training.cache import CachedVolume, build_cache
from SAMRegistrationLib.training.config import TrainingConfig
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.training.negative_bank import NegativeBank
from SAMRegistrationLib.training.objective import embed, total_loss
from SAMRegistrationLib.training.photometric import PhotometricAugmentation
from Testing.other_device import OTHER_DEVICE, OtherTensor, other_device
from Testing.training_volumes import tiny_configuration, write_manifest

EVERY_CHANGE = dict.fromkeys(
    (
        "noise_probability",
        "blur_probability",
        "thick_slice_probability",
        "contrast_probability",
        "window_probability",
        "shading_probability",
        "streak_probability",
        "cut_probability",
        "slab_probability",
        "erosion_probability",
    ),
    1.0,
)


class FixedEmbedding(nn.Module):
    """Vectors of two scales that differ from place to place, without parameters."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.linspace(0.5, 2.0, 8, device=images.device)[:, None, None, None]
        fine, coarse = (functional.avg_pool3d(images, stride) for stride in (2, 8))
        return fine.abs() ** powers, coarse.abs() ** powers


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[CachedVolume]:
    manifest = write_manifest(tmp_path_factory.mktemp("volumes"))
    return build_cache(read_manifest(manifest), tmp_path_factory.mktemp("cache"), 2.0).volumes


def test_tensors_of_two_devices_are_refused_by_the_stand_in(monkeypatch):
    with other_device(monkeypatch) as device:
        there = torch.ones(3, device=device)
        assert (there * 2.0 + torch.tensor(1.0)).device == OTHER_DEVICE
        assert (there + 1).cpu().tolist() == [2.0, 2.0, 2.0]
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)


def test_batches_and_losses_stay_on_the_device_and_equal_those_of_the_cpu(volumes, monkeypatch):
    expected = _losses(volumes, torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = _losses(volumes, device)
    assert found.keys() == expected.keys() >= {"fine", "coarse", "organs"}
    for name, value in expected.items():
        assert isinstance(found[name], OtherTensor)
        torch.testing.assert_close(found[name].on_cpu, value)


@pytest.mark.parametrize("change", EVERY_CHANGE)
def test_every_change_of_grey_values_is_made_on_the_device(monkeypatch, change):
    config = TrainingConfig.from_dict(
        {"photometric": dict.fromkeys(EVERY_CHANGE, 0.0) | {change: 1.0}}
    ).photometric
    image = torch.linspace(-1000, 1000, 16**3).reshape(1, 1, 16, 16, 16)
    expected, _ = PhotometricAugmentation(config, torch.Generator().manual_seed(1))(image)
    with other_device(monkeypatch) as device:
        changed, kept = PhotometricAugmentation(config, torch.Generator().manual_seed(1))(image.to(device))
    assert isinstance(changed, OtherTensor)
    assert isinstance(kept, OtherTensor)
    torch.testing.assert_close(changed.on_cpu, expected)


def _losses(volumes: list[CachedVolume], device: torch.device) -> dict[str, Tensor]:
    config = TrainingConfig.from_dict(tiny_configuration())
    source = BatchSource(volumes, config, device)
    generator = source.generator(0)
    batch = source.draw(generator)
    embedded = embed(FixedEmbedding(), batch, config.loss, generator, mixed_precision=False)
    total, parts = total_loss(embedded, batch, config.loss, NegativeBank(config.loss))
    return {"total": total.detach(), **parts}
