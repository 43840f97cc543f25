"""What holds for every network that predicts displacements."""

from __future__ import annotations

import json
from typing import Any

import pytest

from SAMRegistrationLib.networks.deformable import DEFORMABLE_NETWORKS, build_deformable_network

OPTIONS: dict[str, dict[str, Any]] = {"voxelmorph": {"diffeomorphic": True, "squarings": 5}}
"""Options other than the defaults, which the round trip must keep."""


@pytest.mark.parametrize("name", DEFORMABLE_NETWORKS)
def test_options_build_the_same_network_again(name):
    network = build_deformable_network(name, OPTIONS[name])
    options = json.loads(json.dumps(network.options))
    again = build_deformable_network(network.name, options)
    again.load_state_dict(network.state_dict())
    assert again.options == network.options
    assert OPTIONS[name].items() <= options.items()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="voxelmorph"):
        build_deformable_network("no-such-network")


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="no_such_option"):
        build_deformable_network("voxelmorph", {"no_such_option": 1})
