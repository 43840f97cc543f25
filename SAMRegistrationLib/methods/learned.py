"""One pass of a trained network that predicts displacements, such as VoxelMorph or SAM-VoxelMorph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..models.deformable import DeformableModel, embeddings_for, find_deformable, load_deformable
from ..networks.deformable import Embeddings
from ..solvers.folding import remove_folds
from .problem import Problem, TrainedObjective, at_shape


def learned(problem: Problem, *, network: str, model: str | None = None, passes: int = 1) -> Tensor:
    """The displacement that a network predicts, after the one that the problem already has.

    The network sees both volumes at its own spacing, whatever theirs is, the moving one as it lies under what was
    found so far.

    Args:
        problem: the pair.
        network: architecture of the model.
        model: its name in the catalogue; by default the first one of the architecture.
        passes: how often the network goes on from what it has found.

    Returns:
        (1, 3, z, y, x) in voxels of the network's grid over the working grid's box, or of the existing
        displacement's where that is finer; without folds.

    Raises:
        UsageError: if no model of the architecture is installed.
        InputError: if the weights are damaged, or the problem's features are not those that the network reads.
    """
    loaded = load_deformable(find_deformable(network, model))
    _require_features(loaded, problem)
    shape = _network_shape(problem, loaded.spacing)
    found = predicted(problem, loaded, passes)
    problem.trained = TrainedObjective(_losses_with(loaded, problem), loaded.normalization)
    problem.details["learned"] = {"model": loaded.name, "spacing": loaded.spacing, "shape": list(shape)}
    return found


def predicted(problem: Problem, loaded: DeformableModel, passes: int = 1) -> Tensor:
    """What a loaded network predicts, as `learned` gives it."""
    loaded.network.to(problem.device)
    shape = _network_shape(problem, loaded.spacing)
    before = problem.displacement
    try:
        for index in range(passes):
            problem.displacement = problem.after_existing(_predicted(problem, loaded, shape))
            problem.progress((index + 1) / passes)
        found = problem.displacement
    finally:
        problem.displacement = before
    assert found is not None
    return remove_folds(found)


def _require_features(loaded: DeformableModel, problem: Problem) -> None:
    if loaded.network.uses_embeddings and loaded.features != problem.extractor.name:
        raise InputError(
            f"the network {loaded.name} was trained with the embeddings of {loaded.features} and cannot read "
            f"those of {problem.extractor.name}; choose another preset or these features"
        )


def _losses_with(loaded: DeformableModel, problem: Problem) -> dict[str, float]:
    """What the network was trained on, without the embeddings where they were of another model."""
    same = loaded.features == problem.extractor.name
    return {name: weight for name, weight in loaded.losses.items() if same or name != "sam"}


def _network_shape(problem: Problem, spacing: float) -> tuple[int, int, int]:
    """The (z, y, x) size of the network's grid over the working grid's box."""
    depth, height, width = (max(1, round(extent / spacing)) for extent in reversed(problem.grid.extent))
    return depth, height, width


def _predicted(problem: Problem, loaded: DeformableModel, shape: tuple[int, int, int]) -> Tensor:
    warped = problem.warped().values
    fixed, moving = (loaded.normalization(_resized(volume, shape)) for volume in (problem.fixed.tensor(), warped))
    maps = [None, None] if not loaded.network.uses_embeddings else _embeddings(problem, loaded, warped, shape)
    # No inference mode: an optimization that follows needs ordinary tensors.
    with torch.no_grad():
        return loaded.network(fixed, moving, *maps)[-1].float()


def _embeddings(
    problem: Problem, loaded: DeformableModel, warped: Tensor, shape: tuple[int, int, int]
) -> list[Embeddings]:
    found = []
    for features in (problem.fixed_features(), problem.features_of(warped)):
        if features.coarse is None:
            raise InputError(f"the network {loaded.name} needs features with a coarse map")
        maps = features.fine.data.float(), features.coarse.data.float()
        found.append(embeddings_for(loaded.network, shape, maps))
    return found


def _resized(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A volume (1, 1, z, y, x) averaged to a coarser grid over its box, or interpolated to a finer one."""
    if all(wanted <= own for wanted, own in zip(shape, volume.shape[2:], strict=True)):
        return at_shape(volume, shape)
    return functional.interpolate(volume, size=shape, mode="trilinear", align_corners=False)
