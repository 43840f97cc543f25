"""Every constant of a training run of a deformable network; one file per paper lies in ``configs``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ..settings import LoopSettings, from_plain

CONFIG_FOLDER = Path(__file__).parent / "configs"

INTER, INTRA, GENERATED = "inter", "intra", "generated"


@dataclass(frozen=True)
class PairConfig:
    """Which pairs are shown and how they are cut out; lengths in mm, angles in degrees.

    Args:
        shape: voxels of a crop (z, y, x).
        spacing: voxel size of the network's grid, isotropic.
        window: HU that become `lowest` and 1; what lies outside is clipped.
        lowest: -1 or 0.
        kinds: how often pairs are of two subjects ("inter"), two volumes of one subject ("intra"), or one volume
            and a deformed copy with a known field ("generated"). Kinds that the data cannot give are left out.
        regions: body regions to train on; empty means all.
        start: what the moving volume has been through: "affine" (by the preset of that name, once per volume) or
            "center" (boxes centered on each other).
        turn, scale: largest rotation about each axis and largest factor of the voxel size that the crop of both
            volumes is varied by.
        elastic: standard deviation of the control points of generated fields.
        elastic_grid: their control points (z, y, x) per crop.
        embedding_stride: voxels of the crop per voxel of the fine embeddings, at least; more than one makes the
            loss of embeddings quicker and coarser.
        repeated: how often the moving volume is first warped by what the network itself predicts, so that it
            learns to go on from a better start too.
    """

    shape: tuple[int, int, int] = (48, 48, 64)
    spacing: float = 4.0
    window: tuple[float, float] = (-800.0, 400.0)
    lowest: float = -1.0
    kinds: dict[str, float] = field(default_factory=lambda: {INTER: 1.0})
    regions: tuple[str, ...] = ()
    start: str = "affine"
    turn: float = 0.0
    scale: float = 1.0
    elastic: float = 8.0
    elastic_grid: tuple[int, int, int] = (4, 4, 5)
    embedding_stride: int = 1
    repeated: float = 0.0


@dataclass(frozen=True)
class DeformableLossConfig:
    """Weights of the losses (0 leaves one out) and their constants. Displacements count in voxels.

    Args:
        ncc, lncc, mse, mind: of the intensities; see `losses`.
        sam: cosine distance of the warped embeddings.
        dice: overlap of the structures that both volumes have labels of.
        keypoints: distance in mm of the structures' centers.
        known: squared distance from the known field of generated pairs.
        diffusion: of the squared gradient; `total_variation` of its absolute value.
        negative_jacobian: of the determinant where it is negative.
        radius: half width of the windows of `lncc`.
        scales: resolutions that `lncc` is averaged over, the windows smaller by two voxels and the weight half at
            each coarser one (LapIRN).
        coarse_share: of the coarse embedding in `sam`, beside the fine one.
        masked: count only what lies in the body and in both volumes.
    """

    ncc: float = 0.0
    lncc: float = 0.0
    mse: float = 0.0
    mind: float = 0.0
    sam: float = 0.0
    dice: float = 0.0
    keypoints: float = 0.0
    known: float = 0.0
    diffusion: float = 0.0
    total_variation: float = 0.0
    negative_jacobian: float = 0.0
    radius: int = 4
    scales: int = 1
    coarse_share: float = 0.5
    masked: bool = True


@dataclass(frozen=True, kw_only=True)
class DeformableConfig(LoopSettings):
    """One training run.

    Args:
        features: the model whose embeddings align the volumes, and enter the loss and the network if they do.
        pairs_per_step: pairs per iteration and process.
        stage_iterations: length of each stage of a network that is trained coarse to fine; empty for networks of
            one stage. Their sum is the length of the run, however `iterations` is set.
        frozen: iterations for which the lower stages stay as they are when a new one begins; None for ever.
        picture_every: iterations between the pictures in TensorBoard; 0 for none.
        source: the paper that the constants are from, and where they deviate.
    """

    architecture: str = "voxelmorph"
    features: str = "sam"
    pairs_per_step: int = 1
    iterations: int = 10_000
    stage_iterations: tuple[int, ...] = ()
    frozen: int | None = None
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 10
    decay: float = 0.3
    average_decay: float = 0.99
    picture_every: int = 100
    source: str = ""
    pairs: PairConfig = PairConfig()
    loss: DeformableLossConfig = DeformableLossConfig()

    def __post_init__(self) -> None:
        if self.stage_iterations:
            object.__setattr__(self, "iterations", sum(self.stage_iterations))

    def stage_at(self, iteration: int) -> tuple[int, bool]:
        """The last stage that runs in an iteration, and whether the lower ones stay as they are."""
        begin = 0
        for stage, length in enumerate(self.stage_iterations):
            if iteration < begin + length or stage == len(self.stage_iterations) - 1:
                return stage, self.frozen is None or iteration - begin < self.frozen
            begin += length
        return 0, False

    @staticmethod
    def from_dict(values: dict[str, Any]) -> DeformableConfig:
        """Rebuild from `to_dict`, or from JSON where tuples have become lists.

        Raises:
            TypeError: if a setting is unknown.
        """
        parts: dict[str, type] = {"pairs": PairConfig, "loss": DeformableLossConfig}
        config: DeformableConfig = from_plain(DeformableConfig, values, parts)
        return config


def shipped_configurations() -> list[str]:
    """The names of the configurations that come with the library."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.json"))


def configuration_for(network: str) -> str:
    """The name of the shipped configuration whose network that is.

    Raises:
        UsageError: if none is.
    """
    for name in shipped_configurations():
        if read_configuration(name).architecture == network:
            return name
    raise UsageError(f"no configuration comes with the network {network}; give one by --config")


def read_configuration(name: str | Path, changes: dict[str, Any] | None = None) -> DeformableConfig:
    """A shipped configuration by its name, or one from a JSON file.

    Args:
        name: such as "voxelmorph", or a file.
        changes: top-level settings that replace those of the file.

    Raises:
        UsageError: if there is no such configuration, or it has settings that there are not.
        InputError: if the file cannot be read.
    """
    path = Path(name) if str(name).endswith(".json") else CONFIG_FOLDER / f"{name}.json"
    if not path.is_file():
        raise UsageError(
            f"there is no configuration {name}; give a JSON file or one of {', '.join(shipped_configurations())}"
        )
    try:
        values = {**json.loads(path.read_text(encoding="utf-8")), **(changes or {})}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the configuration {path} cannot be read: {error}") from error
    known = {entry.name for entry in fields(DeformableConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"the configuration {path.name} has the unknown setting {unknown[0]}")
    try:
        return DeformableConfig.from_dict(values)
    except (TypeError, AttributeError) as error:
        raise UsageError(f"the configuration {path.name} is not valid: {error}") from error
