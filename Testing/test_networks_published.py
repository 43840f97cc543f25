"""Networks that others have published: their weights fit ours, layer by layer."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from SAMRegistrationLib.networks.lapirn import WIDTH, LapIRN, from_published, published_width
from SAMRegistrationLib.networks.residual_unet import ResidualUNet
from SAMRegistrationLib.networks.sam_voxelmorph import SAMVoxelMorph
from SAMRegistrationLib.networks.voxelmorph import VoxelMorph


def published_lapirn(width: int = WIDTH) -> OrderedDict[str, Tensor]:
    """A state dict with the names and shapes of the two published LapIRN files, and random values."""
    torch.manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, inputs in (("model_lvl2.model_lvl1.", 2), ("model_lvl2.", 5), ("", 5)):
        shapes[f"{prefix}input_encoder_lvl1.0.weight"] = (width, inputs, 3, 3, 3)
        shapes[f"{prefix}input_encoder_lvl1.2.weight"] = (width, width, 3, 3, 3)
        shapes[f"{prefix}down_conv.weight"] = (width, width, 3, 3, 3)
        for block in (0, 2, 4, 6, 8):
            for part in ("conv1", "conv2"):
                shapes[f"{prefix}resblock_group_lvl1.{block}.{part}.weight"] = (width, width, 3, 3, 3)
        shapes[f"{prefix}up.weight"] = (width, width, 2, 2, 2)
        shapes[f"{prefix}output_lvl1.0.weight"] = (width, 2 * width, 3, 3, 3)
        shapes[f"{prefix}output_lvl1.2.weight"] = (3, width, 3, 3, 3)
    return OrderedDict((name, 0.05 * torch.randn(shape)) for name, shape in shapes.items())


def test_the_published_lapirn_layout_has_the_known_size():
    weights = published_lapirn()
    assert len(weights) == 48
    assert sum(value.numel() for value in weights.values()) == 923_748


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_published_lapirn_weights_load_strictly(diffeomorphic):
    weights = published_lapirn()
    network = LapIRN(diffeomorphic=diffeomorphic, width=published_width(weights))
    network.load_state_dict(from_published(weights), strict=True)
    loaded = network.levels[0].blocks[2].conv1.weight
    assert torch.equal(loaded, weights["model_lvl2.model_lvl1.resblock_group_lvl1.2.conv1.weight"])
    finest = network.levels[2].output[2].weight
    assert torch.equal(finest, weights["output_lvl1.2.weight"])


def test_the_width_of_published_weights_is_found_under_both_names():
    weights = published_lapirn(width=12)
    assert published_width(weights) == published_width(from_published(weights)) == 12
    with pytest.raises(ValueError, match="LapIRN"):
        published_width({"other.weight": torch.zeros(1)})


def test_a_foreign_parameter_is_named():
    with pytest.raises(ValueError, match=r"model_lvl2\.other\.weight"):
        from_published({"model_lvl2.other.weight": torch.zeros(1)})


def test_lapirn_keeps_its_predictions_within_the_largest_steps():
    size = 24
    network = LapIRN(width=4, largest_step=0.1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    with torch.no_grad():
        coarse, middle, fine = network(torch.rand(1, 1, size, size, size), torch.rand(1, 1, size, size, size))
    for field, steps, voxels in ((coarse, 1, size // 4), (middle, 2, size // 2), (fine, 3, size)):
        assert field.abs().max() <= steps * 0.1 * (voxels - 1) / 2 + 1e-4
    assert coarse.abs().max() > 0.09 * (size // 4 - 1) / 2


def test_the_general_model_of_rso_is_monais_residual_u_net():
    nets = pytest.importorskip("monai.networks.nets")
    channels = (4, 8, 12, 16)
    theirs = nets.UNet(3, 2, 3, channels=channels, strides=(2, 2, 2), num_res_units=2)
    ours = ResidualUNet(channels)
    names, values = list(ours.state_dict()), list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(names, values, strict=True)))
    fixed, moving = torch.rand(2, 1, 1, 24, 16, 32)
    with torch.no_grad():
        expected = theirs(torch.cat((fixed, moving), dim=1))
        torch.testing.assert_close(ours(fixed, moving)[-1], expected, rtol=1e-4, atol=1e-5)


def test_the_general_model_of_rso_takes_a_volume_of_one_bottom_voxel():
    with torch.no_grad():
        field = ResidualUNet((4, 8))(torch.rand(1, 1, 2, 2, 2), torch.rand(1, 1, 2, 2, 2))[-1]
    assert field.shape == (1, 3, 2, 2, 2)
    assert field.isfinite().all()


def test_networks_have_the_size_of_their_publications():
    sizes = {
        "voxelmorph": VoxelMorph(),
        "general model of RSO": ResidualUNet(),
        "lapirn": LapIRN(),
    }
    found = {name: sum(p.numel() for p in network.parameters()) for name, network in sizes.items()}
    assert found["lapirn"] == 923_748
    assert found["general model of RSO"] == 4_808_346
    assert found["voxelmorph"] == 327_331


def test_sam_voxelmorph_refuses_an_unknown_backbone_and_missing_embeddings():
    with pytest.raises(ValueError, match="p-hnn"):
        SAMVoxelMorph(backbone="no-such-backbone")
    volume = torch.rand(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="embeddings"):
        SAMVoxelMorph(block_widths=(4, 4, 4, 4, 4))(volume, volume)


@pytest.mark.parametrize("backbone", ["p-hnn", "u-net"])
def test_sam_voxelmorph_without_correlations_needs_no_embeddings(backbone):
    network = SAMVoxelMorph(backbone, fine_correlation=False, coarse_correlation=False)
    assert not network.uses_embeddings
    volume = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert network(volume, volume)[-1].shape == (1, 3, 16, 16, 16)
