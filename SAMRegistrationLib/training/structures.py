"""Fits a semantic head: which structure of one label scheme a voxel of the training volumes belongs to.

The embedding stays as it is (UAE-S, arXiv 2311.15111, trains both at once). Contours are incomplete: a structure
that a subject has no contour of may lie anywhere in it, so such a subject says nothing about that structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..features.base import FeatureExtractor
from ..image_io import read_image, read_labels
from ..networks.structure_head import StructureHead
from ..pipeline import working_grid
from ..sampling import Interpolation
from .manifest import Volume

PLACES_PER_STRUCTURE = 400
PLACES_NEAR = 1500
"""Outside of all structures, but close to one, where a border must be told."""

PLACES_ELSEWHERE = 1500
_NEAR_VOXELS = 3
_BODY_HU = -600.0
_DEFAULT_SPACING = 2.0


@dataclass(frozen=True, eq=False)
class Places:
    """Vectors with what is there, of one volume or of many.

    Args:
        vectors: (n, channels), half precision.
        codes: (n,), 0 for no structure.
        contoured: (n, codes) bool, which codes the place's subject has contours of; 0 always.
    """

    vectors: Tensor
    codes: Tensor
    contoured: Tensor

    @staticmethod
    def join(parts: list[Places]) -> Places:
        """All of them."""
        return Places(
            torch.cat([part.vectors for part in parts]),
            torch.cat([part.codes for part in parts]),
            torch.cat([part.contoured for part in parts]),
        )


def gather_places(
    volumes: list[Volume],
    scheme: str,
    values: list[int],
    extractor: FeatureExtractor,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Places:
    """Places of all volumes with labels of a scheme; `values` are its structures, from code 1 on.

    Raises:
        InputError: if there are none.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for volume in volumes:
        paths = [label.path for label in volume.labels if label.scheme == scheme]
        if paths:
            parts.append(_places_of(volume, paths[0], values, extractor, generator))
            say(f"{len(parts)} {volume.name}")
    if not parts:
        raise InputError(f'No volume has labels of the scheme "{scheme}".')
    return Places.join(parts)


def _places_of(
    volume: Volume,
    labels_path: object,
    values: list[int],
    extractor: FeatureExtractor,
    generator: np.random.Generator,
) -> Places:
    stored = read_image(volume.path, "CT")
    canonical = stored.canonical()
    image = canonical.resampled(working_grid(canonical.grid, extractor.spacing or _DEFAULT_SPACING))
    joined = extractor.extract(image).joined()
    labels = read_labels(labels_path, stored).resampled(joined.grid, Interpolation.NEAREST, default=0)  # type: ignore[arg-type]
    found = labels.data.cpu().numpy().round().astype(int)
    body = image.resampled(joined.grid).data.cpu().numpy() > _BODY_HU
    codes = np.zeros(found.shape, dtype=int)
    for code, value in enumerate(values, 1):
        codes[found == value] = code
    near = binary_dilation(codes > 0, iterations=_NEAR_VOXELS) & (codes == 0)
    groups = [(body & (codes == 0) & ~near, PLACES_ELSEWHERE)]
    groups += [(body & (codes == code), PLACES_PER_STRUCTURE) for code in range(1, len(values) + 1)]
    groups += [(body & near, PLACES_NEAR)]
    chosen = np.concatenate([_drawn(mask, count, generator) for mask, count in groups])
    z, y, x = torch.from_numpy(chosen).unbind(1)
    own = torch.from_numpy(codes)[z, y, x]
    contoured = torch.zeros(len(values) + 1, dtype=torch.bool)
    contoured[torch.from_numpy(np.unique(codes))] = True
    vectors = joined.data[0].cpu()[:, z, y, x].T.half()
    return Places(vectors, own, contoured.expand(len(own), -1))


def _drawn(mask: NDArray[np.bool_], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    voxels = np.argwhere(mask)
    return voxels[generator.choice(len(voxels), min(count, len(voxels)), replace=False)] if len(voxels) else voxels


def fit_head(
    places: Places, hidden: int = 64, iterations: int = 1500, batch: int = 4096, rate: float = 1e-2, seed: int = 0
) -> tuple[StructureHead, float]:
    """The head that tells the places' structures best, and the mean loss over its last tenth of iterations.

    A structure without contours in a place's subject is left out of that place's choice.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = StructureHead(places.vectors.shape[1], hidden, places.contoured.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=1e-3)
    last = 0.0
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = rate * (1 - iteration / iterations)
        picks = torch.randint(len(places.codes), (batch,), generator=generator)
        scores = head(places.vectors[picks].float()).masked_fill(~places.contoured[picks], -1e4)
        loss = functional.cross_entropy(scores, places.codes[picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration >= iterations - iterations // 10:
            last += float(loss.detach()) / max(1, iterations // 10)
    return head.eval(), last
