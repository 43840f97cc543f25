"""What one forward pass of a deformable network costs: parameters, TFLOP, CPU seconds, peak memory.

    python Testing/benchmarks/network_costs.py lapirn '{"diffeomorphic": true}' --size 192 160 256 [--half]

prints one row of the table in RESULTS.md. One network per process, since memory is that of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from SAMRegistrationLib.networks.deformable import DEFORMABLE_NETWORKS, DeformableNetwork, build_deformable_network
from SAMRegistrationLib.networks.fields import strided_shape

EMBEDDING_CHANNELS = 64
FINE_STRIDE, COARSE_STRIDE = 2, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=DEFORMABLE_NETWORKS)
    parser.add_argument("options", nargs="?", type=json.loads, default={})
    parser.add_argument("--size", nargs=3, type=int, default=[192, 160, 256], metavar=("Z", "Y", "X"))
    parser.add_argument("--half", action="store_true", help="bfloat16 by autocast")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = build_deformable_network(arguments.network, arguments.options).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    work = tera_operations(arguments.network, arguments.options, arguments.size)
    seconds, megabytes = forward_cost(network, arguments.size, arguments.half)
    print(f"| {arguments.network} {json.dumps(arguments.options)} | {parameters:,} ", end="")
    print(f"| {work:.2f} | {seconds:.1f} | {megabytes:.0f} |")


def tera_operations(name: str, options: dict[str, Any], size: list[int]) -> float:
    """Floating point operations of all convolutions, in units of 10^12; nothing is computed."""
    with torch.device("meta"):
        network = build_deformable_network(name, options).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(*inputs_of(network, size))
    return counter.get_total_flops() / 1e12


def forward_cost(network: DeformableNetwork, size: list[int], half: bool) -> tuple[float, float]:
    """CPU seconds of one forward pass, and the largest memory of this process in MB."""
    inputs = inputs_of(network, size)
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext()
    start = time.process_time()
    with torch.inference_mode(), precision:
        network(*inputs)
    seconds = time.process_time() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def inputs_of(network: DeformableNetwork, size: list[int]) -> tuple[Any, ...]:
    """Random volumes, and random embeddings where the network reads them."""
    volumes = torch.rand(1, 1, *size), torch.rand(1, 1, *size)
    if not network.uses_embeddings:
        return volumes
    maps = [(random_map(size, FINE_STRIDE), random_map(size, COARSE_STRIDE)) for _ in volumes]
    return (*volumes, *maps)


def random_map(size: list[int], stride: int) -> Tensor:
    return functional.normalize(torch.randn(1, EMBEDDING_CHANNELS, *strided_shape(size, stride)), dim=1)


if __name__ == "__main__":
    main()
