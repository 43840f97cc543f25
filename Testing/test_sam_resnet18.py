"""The published SAM network: layout, size, shapes and slab-wise inference."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from SAMRegistrationLib.networks import sam_resnet18
from SAMRegistrationLib.networks.sam_resnet18 import SamResnet18


@pytest.fixture(scope="module")
def network() -> SamResnet18:
    """Random weights and random batch statistics, so that every tensor matters."""
    torch.manual_seed(0)
    network = SamResnet18().eval()
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return network


def _volume(*size: int) -> torch.Tensor:
    return torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(1)) * 255 - 50


def _published_keys(semantic: bool) -> set[str]:
    """The key layout of the published files, written out from its description."""

    def unit(prefix: str) -> list[str]:
        statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{prefix}.conv.weight", *(f"{prefix}.bn.{name}" for name in statistics)]

    keys = unit("backbone.conv1")
    for layer in (1, 2, 3, 4):
        keys += unit(f"backbone.layer{layer}.0.downsample")
        for block in (0, 1):
            for convolution in ("conv1", "conv2"):
                keys += unit(f"backbone.layer{layer}.{block}.{convolution}")
    heads = {"neck": 3, "read_out_head": 1, **({"semantic_head": 3} if semantic else {})}
    for head, levels in heads.items():
        prefixes = [f"{head}.lateral_convs.{level}.conv" for level in range(levels)] + [f"{head}.fpn_convs.0.conv"]
        keys += [f"{prefix}.{name}" for prefix in prefixes for name in ("weight", "bias")]
    return set(keys)


@pytest.mark.parametrize("semantic", [False, True])
def test_state_dict_has_exactly_the_published_keys(semantic: bool) -> None:
    assert set(SamResnet18(semantic).state_dict()) == _published_keys(semantic)


def test_network_has_the_published_number_of_parameters(network: SamResnet18) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(32.83e6, rel=2e-4)


def test_kernels_of_the_stages_have_the_published_shapes(network: SamResnet18) -> None:
    state = network.state_dict()
    expected = {
        "backbone.conv1.conv.weight": (64, 1, 3, 7, 7),
        "backbone.layer1.0.downsample.conv.weight": (64, 64, 1, 1, 1),
        "backbone.layer2.0.conv1.conv.weight": (128, 64, 1, 3, 3),
        "backbone.layer3.1.conv2.conv.weight": (256, 256, 3, 3, 3),
        "backbone.layer4.0.conv1.conv.weight": (512, 256, 3, 3, 3),
        "neck.lateral_convs.2.conv.weight": (128, 256, 1, 1, 1),
        "read_out_head.lateral_convs.0.conv.weight": (128, 512, 1, 1, 1),
        "read_out_head.fpn_convs.0.conv.weight": (128, 128, 3, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_work_per_voxel_is_the_published_network_s(network: SamResnet18) -> None:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(_volume(8, 32, 32), slab_depth=8)
    assert counter.get_total_flops() / (8 * 32 * 32) == pytest.approx(0.39e6, rel=0.02)


@pytest.mark.parametrize("size", [(8, 32, 48), (9, 33, 17), (2, 16, 16)])
def test_outputs_have_the_strides_of_the_two_heads(network: SamResnet18, size: tuple[int, int, int]) -> None:
    with torch.inference_mode():
        fine, coarse = network(_volume(*size))
    depth, height, width = size[0] // 2, size[1], size[2]
    assert tuple(fine.shape) == (1, 128, depth, -(-height // 2), -(-width // 2))
    assert tuple(coarse.shape) == (1, 128, -(-depth // 2), -(-height // 16), -(-width // 16))
    for vectors in (fine, coarse):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones_like(vectors[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [13, 16])
@pytest.mark.parametrize("slab_depth", [2, 6])
def test_slabs_give_what_the_whole_volume_gives(network: SamResnet18, depth: int, slab_depth: int) -> None:
    volume = _volume(depth, 19, 24)
    with torch.inference_mode():
        whole, slabs = network(volume, slab_depth=100), network(volume, slab_depth=slab_depth)
        stages = network.backbone._whole(volume)
        stages_in_slabs = network.backbone._in_slabs(volume, slab_depth)
    for expected, found in zip((*whole, *stages), (*slabs, *stages_in_slabs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_folded_normalization_gives_the_same_vectors(network: SamResnet18) -> None:
    volume = _volume(8, 32, 32)
    with torch.inference_mode():
        for expected, found in zip(network(volume), network.fused()(volume), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_fine_head_adds_the_upsampled_levels_before_its_convolution(network: SamResnet18) -> None:
    """Independent evaluation of the pyramid on one voxel with plain matrix products."""
    levels = [torch.rand(1, channels, 3, 4, 4) for channels in (64, 128, 256)]
    levels[1], levels[2] = levels[1][..., :2, :2], levels[2][..., :1, :1]
    neck = network.neck
    merged = torch.zeros(128, 3, 4, 4)
    for lateral, level in zip(neck.lateral_convs, levels, strict=True):
        projected = torch.einsum("oc,czyx->ozyx", lateral.conv.weight[:, :, 0, 0, 0], level[0])
        factor = 4 // level.shape[-1]
        enlarged = projected.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        merged = merged + enlarged + lateral.conv.bias[:, None, None, None]
    convolution = neck.fpn_convs[0].conv
    expected = torch.einsum("oczyx,czyx->o", convolution.weight, merged[:, :3, 1:4, 0:3]) + convolution.bias
    with torch.no_grad():
        torch.testing.assert_close(neck(levels)[0, :, 1, 2, 1], expected, atol=1e-5, rtol=1e-4)


def test_semantic_vectors_are_half_of_the_fine_vectors(network: SamResnet18) -> None:
    semantic = SamResnet18(semantic=True).eval()
    semantic.load_state_dict(network.state_dict(), strict=False)
    volume = _volume(4, 16, 16)
    with torch.inference_mode():
        fine, coarse = semantic(volume)
        plain_fine, plain_coarse = network(volume)
    torch.testing.assert_close(fine[:, :128] * 2**0.5, plain_fine, atol=1e-5, rtol=0)
    torch.testing.assert_close(coarse, plain_coarse, atol=1e-5, rtol=0)
    torch.testing.assert_close(fine.norm(dim=1), torch.ones_like(fine[:, 0]), atol=1e-5, rtol=0)


def test_training_mode_reaches_every_parameter_with_a_gradient() -> None:
    network = SamResnet18(semantic=True).train()
    volume = torch.rand(2, 1, 8, 32, 32) * 255 - 50
    fine, coarse = network(volume)
    weights = torch.rand(1, 256, 1, 1, 1)
    ((fine * weights).sum() + (coarse * weights[:, :128]).sum()).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def test_ct_scaling_maps_air_water_and_metal_as_published() -> None:
    scaled = sam_resnet18.preprocess_ct(torch.tensor([-2000.0, -1024.0, 0.0, 3071.0, 9000.0]))
    expected = torch.tensor([-50.0, -50.0, 1024 / 4095 * 255 - 50, 205.0, 205.0])
    torch.testing.assert_close(scaled, expected)


def test_mr_scaling_clips_the_percentiles() -> None:
    volume = torch.arange(10_001, dtype=torch.float32).view(1, 1, 1, 73, 137)
    scaled = sam_resnet18.preprocess_mr(volume).flatten()
    lower, upper = 20.0, 9980.0
    expected = ((torch.arange(10_001) - lower) / (upper - lower) * 255 - 50).clamp(-50, 205)
    torch.testing.assert_close(scaled, expected, atol=0.02, rtol=0)
