"""The networks a model file can hold weights for, and how each wants its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..networks import sam_lite, sam_resnet18

Shape = tuple[int, int, int]
EmbeddingNetwork = sam_lite.SamLite | sam_resnet18.SamResnet18


@dataclass(frozen=True)
class Architecture:
    """A network and its input.

    Args:
        name: as written in the catalogue.
        build: makes the network from a model's configuration (keyword arguments).
        configuration_of: the configuration of the network that has such weights; a guess where they are not its.
        preprocess: per modality ("CT", "MR") the map from stored values to the network's input.
        spacing: isotropic working spacing in mm.
        fine_stride, coarse_stride: (z, y, x) strides of the two outputs. Voxel i of a map sits at input voxel
            s * i + (s - 1) / 2.
        multiple: (z, y, x) numbers that the input size must be a multiple of.
        air: the network's input value for nothing, which fills the padding.
        peak_values: most numbers alive at one time per input voxel, measured; for memory estimates.
        fixed_values: numbers alive at that time whatever the size, such as weights and buffers.
    """

    name: str
    build: Callable[..., EmbeddingNetwork]
    configuration_of: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    preprocess: Mapping[str, Callable[[Tensor], Tensor]]
    spacing: float
    fine_stride: Shape
    coarse_stride: Shape
    multiple: Shape
    air: float
    peak_values: float
    fixed_values: int

    def with_weights(self, weights: Mapping[str, Tensor], configuration: Mapping[str, Any]) -> EmbeddingNetwork:
        """The network in evaluation mode with these weights.

        Raises:
            InputError: if the weights are not those of this network.
        """
        values = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        try:
            # Without values of its own, the network is not initialized for nothing.
            with torch.device("meta"):
                network = self.build(**configuration)
            network.load_state_dict(values, assign=True)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"the weights do not fit the architecture {self.name}: {error}") from error
        return network.eval()


def _sam_lite_configuration(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = ("stem", "stage_quarter.0", "stage_eighth.0", "stage_sixteenth.0")
    found = [weights.get(f"{stage}.convolution.weight") for stage in stages]
    head = weights.get("fine_head.weight")
    if head is None or any(weight is None for weight in found):
        return {}
    widths = [weight.shape[0] for weight in found if weight is not None]
    return {"widths": widths, "embedding_channels": head.shape[0]}


def _sam_resnet18_configuration(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"semantic": any(name.startswith("semantic_head.") for name in weights)}


SAM_LITE = Architecture(
    name="sam-lite",
    build=sam_lite.SamLite,
    configuration_of=_sam_lite_configuration,
    preprocess={"CT": sam_lite.preprocess_ct},
    spacing=sam_lite.WORKING_SPACING,
    fine_stride=(sam_lite.FINE_STRIDE,) * 3,
    coarse_stride=(sam_lite.COARSE_STRIDE,) * 3,
    multiple=(sam_lite.TOTAL_STRIDE,) * 3,
    air=0.0,
    peak_values=20,
    fixed_values=40_000_000,
)

SAM_RESNET18 = Architecture(
    name="sam-resnet18",
    build=sam_resnet18.SamResnet18,
    configuration_of=_sam_resnet18_configuration,
    preprocess={"CT": sam_resnet18.preprocess_ct, "MR": sam_resnet18.preprocess_mr},
    spacing=sam_resnet18.WORKING_SPACING,
    fine_stride=sam_resnet18.FINE_STRIDE,
    coarse_stride=sam_resnet18.COARSE_STRIDE,
    multiple=sam_resnet18.COARSE_STRIDE,
    air=-50.0,
    peak_values=40,
    fixed_values=200_000_000,
)

ARCHITECTURES = {architecture.name: architecture for architecture in (SAM_LITE, SAM_RESNET18)}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        InputError: if this version does not know it.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(f"the model needs the architecture {name!r}, which this version does not have ({known})")
    return ARCHITECTURES[name]
