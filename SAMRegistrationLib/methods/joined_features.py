"""An extractor's features of both volumes joined with MIND, for a search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..features.base import Features
from ..features.mind import MindExtractor
from ..solvers.convexadam import average_blocks
from .problem import Problem, at_shape


def joined_features(problem: Problem, mind_share: float, block: int = 1) -> tuple[Tensor, Tensor]:
    """Unit vectors (1, C, z, y, x) of the fixed and the aligned moving volume for a search.

    Args:
        problem: the pair.
        mind_share: share of MIND in the dot product, beside the problem's own features; 0 for none.
        block: voxels that are averaged along each axis; the means are shorter than the vectors.
    """
    alone = mind_share == 0 or problem.extractor.name == "mind"
    mind = (None, None) if alone else problem.features(MindExtractor(device=problem.device))
    fixed, moving = (
        _joined_blocks(own, other, mind_share, block) for own, other in zip(problem.features(), mind, strict=True)
    )
    return fixed, moving


def _joined_blocks(own: Features, mind: Features | None, mind_share: float, block: int) -> Tensor:
    shape = tuple(own.fine.data.shape[2:])
    vectors = own.joined().data if block == 1 else _joined_means(own, block)
    if mind is None:
        return vectors
    return _weighted_pair(vectors, average_blocks(at_shape(mind.fine.data, shape), block), mind_share)


def _joined_means(own: Features, block: int) -> Tensor:
    """Block means of the joined vectors, the coarse ones interpolated where the blocks lie."""
    fine = average_blocks(own.fine.data, block)
    if own.coarse is None:
        return fine
    # Their vectors differ little within a block: the long joined ones need not exist at full resolution.
    coarse = functional.interpolate(own.coarse.data, tuple(fine.shape[2:]), mode="trilinear", align_corners=False)
    return torch.cat((fine, functional.normalize(coarse, dim=1).to(fine.dtype)), dim=1) * 0.5**0.5


def with_mind(problem: Problem, own: Tensor, volume: Tensor, mind_share: float) -> Tensor:
    """Unit vectors of the problem's features joined with MIND of the same volume.

    Args:
        problem: the pair.
        own: (1, C, z, y, x) unit vectors of the volume by the problem's own extractor.
        volume: (1, 1, z, y, x) over the working grid's box, at any pyramid level of it.
        mind_share: share of MIND in the dot product; 0 for none, which gives `own` back.

    Returns:
        (1, C + 12, z, y, x); `own` itself where that is MIND already.
    """
    if mind_share == 0 or problem.extractor.name == "mind":
        return own
    mind, _ = MindExtractor(device=problem.device).extract_tensor(volume)
    return _weighted_pair(own, at_shape(mind, tuple(own.shape[2:])), mind_share)


def _weighted_pair(own: Tensor, mind: Tensor, mind_share: float) -> Tensor:
    return torch.cat((mind.to(own.dtype) * mind_share**0.5, own * (1 - mind_share) ** 0.5), dim=1)
