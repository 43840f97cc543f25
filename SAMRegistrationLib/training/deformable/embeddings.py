"""The embeddings of prepared volumes, extracted once and kept beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, RegistrationError
from ...features.sam import SamExtractor
from ..cache import CachedVolume

FINE, COARSE = "fine", "coarse"


@dataclass(frozen=True)
class EmbeddingMap:
    """A map (1, C, z, y, x) of a volume: its voxel i lies at voxel stride * i + (stride - 1) / 2 of it."""

    data: Tensor
    stride: int

    def to(self, device: torch.device) -> EmbeddingMap:
        """The same on a device."""
        return EmbeddingMap(self.data.to(device), self.stride)

    def positions(self, voxels: Tensor) -> Tensor:
        """Positions in voxels of the map, of positions in voxels of the volume."""
        return (voxels - (self.stride - 1) / 2) / self.stride


class EmbeddingStore:
    """Embeddings by volume, in half precision, memory-mapped from a folder.

    Args:
        extractor: whose spacing is that of the volumes.
        folder: for one file per volume and map.

    Raises:
        InputError: if the extractor's strides differ between the axes, which training does not support.
    """

    def __init__(self, extractor: SamExtractor, folder: Path) -> None:
        self.extractor = extractor
        self.folder = folder
        strides = {FINE: extractor.architecture.fine_stride, COARSE: extractor.architecture.coarse_stride}
        if any(len(set(stride)) > 1 for stride in strides.values()):
            raise InputError(f"networks cannot be trained with the uneven strides of {extractor.name}")
        self.strides = {kind: stride[0] for kind, stride in strides.items()}

    def maps(self, volume: CachedVolume) -> tuple[EmbeddingMap, EmbeddingMap]:
        """The fine and the coarse map of a prepared volume.

        Raises:
            RegistrationError: if they cannot be written.
        """
        if not all(self._path(volume, kind).is_file() for kind in self.strides):
            self._extract(volume)
        fine, coarse = (self._stored(volume, kind) for kind in (FINE, COARSE))
        return fine, coarse

    def _stored(self, volume: CachedVolume, kind: str) -> EmbeddingMap:
        array = np.load(self._path(volume, kind), mmap_mode="c")
        return EmbeddingMap(torch.from_numpy(array), self.strides[kind])

    def _extract(self, volume: CachedVolume) -> None:
        image = torch.from_numpy(volume.image()).float()[None, None]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for kind, values in zip((FINE, COARSE), self.extractor.extract_tensor(image), strict=True):
                path = self._path(volume, kind)
                temporary = path.with_suffix(".part")
                with temporary.open("wb") as stream:
                    np.save(stream, values.half().cpu().numpy())
                temporary.replace(path)
        except OSError as error:
            raise RegistrationError(f"the embeddings of {volume.name} cannot be written: {error}") from error

    def _path(self, volume: CachedVolume, kind: str) -> Path:
        return self.folder / f"{volume.name}.{self.extractor.name}.{kind}.npy"
