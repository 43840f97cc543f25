"""What holds for every network that predicts displacements."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from network_cases import CASES, Pair, textured_pair
from torch.nn import functional

from SAMRegistrationLib.networks.deformable import (
    DEFORMABLE_NETWORKS,
    DeformableNetwork,
    build_deformable_network,
)
from SAMRegistrationLib.networks.fields import strided_shape

ODD_SIZE = (19, 26, 21)


@pytest.fixture(scope="module")
def odd_pair() -> Pair:
    return textured_pair(ODD_SIZE)


@pytest.fixture(params=CASES)
def network(request: pytest.FixtureRequest) -> DeformableNetwork:
    return _with_lively_weights(CASES[request.param].build().eval())


def _with_lively_weights(network: DeformableNetwork) -> DeformableNetwork:
    """Last layers that start at zero would hide everything before them."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d) and module.out_channels == 3:
            torch.nn.init.normal_(module.weight, std=0.1)
    return network


def test_every_network_has_a_case():
    assert {case.name for case in CASES.values()} == set(DEFORMABLE_NETWORKS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_options_build_the_same_network_again(case):
    network = case.build()
    options = json.loads(json.dumps(network.options))
    again = build_deformable_network(network.name, options)
    again.load_state_dict(network.state_dict())
    assert again.options == network.options
    assert case.options.items() <= options.items()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="voxelmorph"):
        build_deformable_network("no-such-network")


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="no_such_option"):
        build_deformable_network("voxelmorph", {"no_such_option": 1})


def test_any_size_gives_fields_on_the_grids_of_the_strides(network, odd_pair):
    with torch.no_grad():
        fields = network(*odd_pair.inputs_of(network))
    assert [tuple(field.shape) for field in fields] == [
        (1, 3, *strided_shape(ODD_SIZE, stride)) for stride in network.strides
    ]
    for field in fields:
        assert field.dtype == torch.float32
        assert field.isfinite().all()
        assert field.abs().max() > 1e-3


def test_volumes_of_a_batch_do_not_mix(network, odd_pair):
    other = textured_pair(ODD_SIZE, seed=5)
    with torch.no_grad():
        alone = network(*odd_pair.inputs_of(network))[-1]
        both = network(*_batch(odd_pair.inputs_of(network), other.inputs_of(network)))[-1]
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)


def _batch(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        _batch(a, b) if isinstance(a, tuple) else torch.cat((a, b)) for a, b in zip(first, second, strict=True)
    )


def test_gradients_reach_every_parameter(network, odd_pair):
    network.train()
    fields = network(*odd_pair.inputs_of(network))
    functional.mse_loss(fields[-1], odd_pair.truth).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_stages_run_up_to_the_wanted_one_and_freeze_what_lies_below(network, odd_pair):
    for stage in range(network.stages):
        network.use_stages(stage)
        fields = network(*odd_pair.inputs_of(network))
        assert len(fields) == (stage + 1 if network.stages > 1 else len(network.strides))
        fields[-1].square().mean().backward()
        for number in range(network.stages):
            gradients = [parameter.grad for parameter in network.stage_module(number).parameters()]
            trained = [gradient is not None and bool(gradient.any()) for gradient in gradients]
            assert all(trained) if number == stage else not any(trained)
        network.zero_grad()
    with pytest.raises(ValueError, match="stages"):
        network.use_stages(network.stages)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_seed_decides_weights_and_result(case, odd_pair):
    results = []
    for seed in (1, 1, 2):
        network = case.build(seed)
        with torch.no_grad():
            results.append(network(*odd_pair.inputs_of(network))[-1])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.slow
def test_the_exported_network_computes_the_same(network, odd_pair):
    inputs = odd_pair.inputs_of(network)
    with torch.no_grad():
        exported = torch.export.export(network, inputs, strict=False).module()
        for ours, theirs in zip(network(*inputs), exported(*inputs), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_traced_network_computes_the_same_for_other_volumes(network, odd_pair):
    other = textured_pair(ODD_SIZE, seed=5).inputs_of(network)
    with torch.no_grad():
        traced = torch.jit.trace(network, odd_pair.inputs_of(network), check_trace=False)
        for ours, theirs in zip(network(*other), traced(*other), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_half_precision_gives_nearly_the_same_field_in_full_precision(network, odd_pair):
    inputs = odd_pair.inputs_of(network)
    with torch.no_grad():
        full = network(*inputs)[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(*inputs)[-1]
    assert half.dtype == torch.float32
    assert float((half - full).abs().mean()) < 0.05 * max(1.0, float(full.abs().mean()))


def test_weights_of_half_precision_give_fields_of_full_precision(network, odd_pair):
    inputs = odd_pair.inputs_of(network)
    halved = tuple(
        tuple(part.bfloat16() for part in value) if isinstance(value, tuple) else value.bfloat16()
        for value in inputs
    )
    with torch.no_grad():
        full = network(*inputs)[-1]
        half = network.bfloat16()(*halved)[-1]
    assert half.dtype == torch.float32
    assert float((half - full).abs().mean()) < 0.1 * max(1.0, float(full.abs().mean()))


def test_training_in_half_precision_reaches_every_parameter(network, odd_pair):
    # oneDNN's gradient of a few channels' weights was not finite once, on a processor with bfloat16 of its own.
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        fields = network(*odd_pair.inputs_of(network))
        functional.mse_loss(fields[-1], odd_pair.truth).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
