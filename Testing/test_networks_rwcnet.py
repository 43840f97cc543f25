"""RWCNet: patches change nothing, gates are its own, velocities are integrated, stages build on each other."""

from __future__ import annotations

import pytest
import torch
from network_cases import RECURRENT, textured_pair
from torch import Tensor

from SAMRegistrationLib.networks.fields import compose, enlarge_field, integrate_velocity
from SAMRegistrationLib.networks.patches import part_of, patches
from SAMRegistrationLib.networks.recurrent_update import REACH, ConvolutionalGRU, RecurrentUpdate
from SAMRegistrationLib.networks.residual_encoder import ResidualEncoderDecoder
from SAMRegistrationLib.networks.rwcnet import RWCNet

SIZE = (22, 25, 32)


def lively(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with random weights everywhere, so that nothing cancels or is zero."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5 / max(1.0, parameter[0].numel() ** 0.5))
    return network


def recurrent_update(**options: object) -> RecurrentUpdate:
    settings = {"correlation": True, "correlation_gradient": True, "patch_voxels": 2**20, **options}
    return lively(RecurrentUpdate(4, 6, 2, **settings))


def step_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((1, channels, *SIZE), generator=generator) for channels in (4, 4, 3, 6)]


def test_cores_cover_the_grid_once_and_stay_below_the_limit():
    covered = torch.zeros(1, 1, *SIZE)
    for patch in patches(SIZE, 3, 1500):
        part_of(covered, patch.core).add_(1)
        assert part_of(covered, patch.core).numel() <= 1500
        seen = part_of(covered, patch.seen)
        assert part_of(seen, patch.core_in_seen).data_ptr() == part_of(covered, patch.core).data_ptr()
    assert torch.equal(covered, torch.ones_like(covered))


def test_a_grid_below_the_limit_is_one_patch():
    (patch,) = patches(SIZE, 3, SIZE[0] * SIZE[1] * SIZE[2])
    assert patch.core == patch.seen == tuple(slice(0, size) for size in SIZE)


@pytest.mark.parametrize("correlation", [True, False])
def test_a_step_in_patches_is_the_step_of_the_whole(correlation):
    inputs = step_inputs()
    whole = recurrent_update(correlation=correlation)
    in_patches = recurrent_update(correlation=correlation, patch_voxels=3000)
    with torch.no_grad():
        for expected, found in zip(whole(*inputs), in_patches(*inputs), strict=True):
            assert expected.std() > 0.01
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_step_depends_on_exactly_as_many_voxels_as_patches_see():
    inputs = step_inputs()
    middle = [size // 2 for size in SIZE]
    update = recurrent_update()
    with torch.no_grad():
        before = update(*inputs)[1][0, :, middle[0], middle[1], middle[2]]
        for distance, changes in ((REACH, True), (REACH + 1, False)):
            changed = [volume.clone() for volume in inputs]
            changed[2][..., middle[2] + distance] += 100.0
            after = update(*changed)[1][0, :, middle[0], middle[1], middle[2]]
            assert torch.equal(after, before) != changes


def test_gradients_of_patches_are_those_of_the_whole():
    gradients = []
    for voxels in (2**20, 6000):
        update = recurrent_update(patch_voxels=voxels)
        state, correction = update(*step_inputs())
        (state.square().mean() + correction.square().mean()).backward()
        gradients.append([parameter.grad for parameter in update.parameters()])
    for whole, patched in zip(*gradients, strict=True):
        torch.testing.assert_close(patched, whole, rtol=1e-3, atol=1e-6)


def rwcnet(**options: object) -> RWCNet:
    torch.manual_seed(0)
    network = RWCNet(**{**RECURRENT, **options}).eval()
    for level in network.levels:
        lively(level.update)
        torch.nn.init.normal_(level.update.head[-1].weight, std=0.05)
    return network


def test_the_field_in_patches_has_no_seams():
    pair = textured_pair(SIZE)
    steps = {"steps": [3, 3, 2], "radii": [2, 1, 1]}
    with torch.no_grad():
        whole = rwcnet(**steps)(pair.fixed, pair.moving)[-1]
        found = rwcnet(**steps, patch_voxels=2000)(pair.fixed, pair.moving)[-1]
    assert whole.abs().max() > 1.0
    assert float((found - whole).abs().max()) < 1e-3


def test_without_gradient_through_correlations_features_learn_less():
    inputs = [volume.requires_grad_() for volume in step_inputs()[:2]]
    field, state = step_inputs()[2:]
    reached = []
    for gradient in (True, False):
        update = recurrent_update(correlation_gradient=gradient)
        correction = update(*inputs, field, state)[1]
        reached.append(torch.autograd.grad(correction.sum(), inputs, allow_unused=True))
    assert reached[0][0].abs().max() > 0
    assert reached[1][0] is None
    assert reached[1][1].abs().max() > 0


def test_the_reset_gate_has_weights_of_its_own():
    unit = lively(ConvolutionalGRU(3, 2))
    state, inputs = torch.randn(1, 2, 5, 5, 5), torch.randn(1, 3, 5, 5, 5)
    with torch.no_grad():
        for part, gate in ((slice(0, 2), "update"), (slice(2, 4), "reset")):
            unit.gates.weight.zero_()
            unit.gates.bias.zero_()
            unit.gates.bias[part] = -100.0
            found = unit(state, inputs)
            if gate == "update":
                torch.testing.assert_close(found, state)
            else:
                forgetful = torch.tanh(unit.candidate(torch.cat((torch.zeros_like(state), inputs), dim=1)))
                torch.testing.assert_close(found, (state + forgetful) / 2)


def test_the_velocity_of_a_diffeomorphic_stage_is_integrated():
    pair = textured_pair((16, 16, 16))
    plain = rwcnet(resolutions=[1], steps=[1], radii=[1])
    diffeomorphic = rwcnet(resolutions=[1], steps=[1], radii=[1], diffeomorphic=True)
    with torch.no_grad():
        velocity = plain(pair.fixed, pair.moving)[-1]
        field = diffeomorphic(pair.fixed, pair.moving)[-1]
    torch.testing.assert_close(field, integrate_velocity(velocity))
    assert not torch.allclose(field, velocity, atol=1e-3)


def test_a_finer_stage_that_corrects_nothing_keeps_the_field_and_gets_the_state():
    pair = textured_pair((16, 18, 20))
    network = rwcnet(resolutions=[2, 1], steps=[2, 1], radii=[1, 1])
    torch.nn.init.zeros_(network.levels[1].update.head[-1].weight)
    torch.nn.init.zeros_(network.levels[1].update.head[-1].bias)
    with torch.no_grad():
        coarse, fine = network(pair.fixed, pair.moving)
    expected = enlarge_field(coarse, 2, fine.shape[2:])
    torch.testing.assert_close(fine, compose(torch.zeros_like(expected), expected))


def test_the_state_is_handed_up():
    pair = textured_pair((16, 16, 16))
    network = rwcnet(resolutions=[2, 1], steps=[2, 1], radii=[1, 1])
    with torch.no_grad():
        before = network(pair.fixed, pair.moving)
        level = network.levels[1]
        coarse_field, state = network.levels[0](
            *(torch.nn.functional.avg_pool3d(volume, 2) for volume in (pair.fixed, pair.moving)), None, None
        )
        start = enlarge_field(coarse_field, 2, pair.fixed.shape[2:])
        with_state = level(pair.fixed, pair.moving, start, state)[0]
        without = level(pair.fixed, pair.moving, start, None)[0]
    torch.testing.assert_close(with_state, before[-1])
    assert not torch.allclose(without, with_state, atol=1e-4)


def test_resolutions_must_halve():
    with pytest.raises(ValueError, match="half"):
        RWCNet(resolutions=(4, 1), steps=(1, 1), radii=(1, 1))


def test_the_feature_network_is_monais_seg_res_net():
    nets = pytest.importorskip("monai.networks.nets")
    theirs = nets.SegResNet(in_channels=4, out_channels=5)
    ours = ResidualEncoderDecoder(4, 5)
    assert len(ours.state_dict()) == len(theirs.state_dict())
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    volume = torch.rand(1, 4, 16, 24, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(volume), theirs(volume), rtol=1e-4, atol=1e-5)
