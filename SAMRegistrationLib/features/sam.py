"""SAM features: where in the body each voxel is, by a trained embedding network.

Yan et al. 2022 (IEEE TMI, arXiv 2012.02383); used for registration as in SAME (section 2.1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import NotEnoughMemoryError, RegistrationWarning
from ..grid import Grid
from ..image import Image
from ..memory_reuse import give_back_much, own_pages
from ..models.architectures import Architecture, EmbeddingNetwork, Shape, find_architecture
from ..models.catalogue import ModelEntry, build_network
from ..networks.sam_lite import SamLite
from .base import FeatureMap, Features, divided
from .memory import GIGABYTE, require_memory
from .precision import inference_precision
from .scan_ends import continue_beyond_ends

_BYTES_BESIDE_NETWORK = 45
"""Per voxel at working spacing: the volume as given, resampled and prepared, and the features in float32."""

_ADVICE = "crop the volume or use a preset with MIND features"

_BEYOND_ENDS_MM = 32.0
"""So far the outermost slices are repeated: vectors tell how near an end is, which says nothing of the body."""

_BELOW_TISSUE = -200.0
"""A volume of unknown modality that reaches below this many units is taken for a CT."""


class SamExtractor:
    """Fine and coarse unit vectors of a trained network.

    The whole volume goes through the network at once, since the coarse vectors see half of the body. Sizes that
    the network cannot take are padded with air at the far ends.

    Args:
        network: maps (1, 1, z, y, x) preprocessed volumes to fine and coarse unit vectors.
        architecture: how the network wants its input.
        name: of the model.
        device: where to compute; features stay there.
        precision: float type of the computation; by default the fastest the device is good at.
    """

    def __init__(
        self,
        network: EmbeddingNetwork,
        architecture: Architecture,
        name: str,
        device: torch.device | str = "cpu",
        precision: torch.dtype | None = None,
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.spacing: float | None = architecture.spacing
        self.device = torch.device(device)
        self.precision = precision or inference_precision(self.device)
        self._network = network.fused().to(self.device, self.precision)
        # Channels last is what convolutions in half precision are fast with.
        self._network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @classmethod
    def of_model(cls, entry: ModelEntry, device: torch.device | str = "cpu") -> SamExtractor:
        """The extractor of a catalogued model.

        Raises:
            InputError: if its weights are missing, changed or of another architecture.
        """
        return cls(build_network(entry), find_architecture(entry.architecture), entry.name, device)

    @property
    def feature_precision(self) -> torch.dtype:
        """Type of the features: float16 on CUDA, float32 elsewhere, where half precision is slow to use."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def suits(self, image: Image) -> bool:
        """Whether the model was made for volumes of this modality (told by the values where it is not stated)."""
        return _modality(image) in self.architecture.preprocess

    def extract(self, image: Image) -> Features:
        """The features of a volume, on grids whose axes lie closest to L, P, S.

        Raises:
            NotEnoughMemoryError: if the volume at working spacing does not fit.
        """
        modality = self._modality_of(image)
        size = image.grid.resampled(self.architecture.spacing).shape
        require_memory(self.estimate_memory(image.grid), self.device, self._purpose(size), _ADVICE)
        image = image.to(self.device).canonical()
        grid = image.grid.resampled(self.architecture.spacing)
        volume = image if image.grid.isclose(grid) else image.resampled(grid)
        fine, coarse = self.extract_tensor(volume.tensor(), modality)
        fine_grid, coarse_grid = self.feature_grids(grid)
        return Features(FeatureMap(fine, fine_grid), FeatureMap(coarse, coarse_grid))

    def extract_tensor(self, volume: Tensor, modality: str = "CT") -> tuple[Tensor, Tensor]:
        """Fine and coarse unit vectors of a volume (1, 1, z, y, x) at working spacing, axes along L, P, S.

        Args:
            volume: HU for CT, any unit for MR.
            modality: "CT" or "MR".

        Returns:
            (1, C, ceil(z/s), ceil(y/s), ceil(x/s)) for the strides s of the architecture, in the memory format
            channels_last_3d, in which vectors are read, compared and normalized several times as fast. Voxel i
            sits at voxel s * i + (s - 1) / 2 of the volume.

        Raises:
            KeyError: for a modality that the model was not made for.
            NotEnoughMemoryError: if the network runs out of memory.
        """
        size = volume.shape[2:]
        try:
            with torch.no_grad():
                found = self._embedded(volume, modality)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            raise NotEnoughMemoryError(
                f"{self._purpose(size)} took more memory than {self.device} has free, about "
                f"{self._bytes_for(size) / GIGABYTE:.1f} GB; {_ADVICE}"
            ) from error
        give_back_much()
        return found

    def _embedded(self, volume: Tensor, modality: str) -> tuple[Tensor, Tensor]:
        size, architecture = volume.shape[2:], self.architecture
        if self.device.type == "cpu" and isinstance(self._network, SamLite):
            shape = (len(volume), self._network.embedding_channels, *_divided(size, architecture.fine_stride))
            with own_pages(math.prod(shape) * self.feature_precision.itemsize):
                # Of large volumes the network's own precision would be a third copy besides what it works on.
                made = torch.empty(shape, dtype=self.feature_precision, memory_format=torch.channels_last_3d)
            first = self._beyond_ends // architecture.fine_stride[0]
            fine, coarse = self._network(self._prepared(volume, modality), made, first)
        else:
            fine, coarse = self._network(self._prepared(volume, modality))
            fine = self._between_ends(fine, size, architecture.fine_stride)
        coarse = self._between_ends(coarse, size, architecture.coarse_stride)
        return self._finished(fine), self._finished(coarse)

    def _prepared(self, volume: Tensor, modality: str) -> Tensor:
        return self._padded(self._preprocessing(modality)(volume.to(self.device)))

    def feature_grids(self, grid: Grid) -> tuple[Grid, Grid]:
        """Where the fine and the coarse map of `extract_tensor` lie for a volume on `grid`."""
        return divided(grid, self.architecture.fine_stride), divided(grid, self.architecture.coarse_stride)

    def estimate_memory(self, grid: Grid) -> int:
        """Bytes needed at the peak to embed a volume on `grid`, resampling included, weights excluded."""
        return self._bytes_for(grid.resampled(self.architecture.spacing).shape)

    def _bytes_for(self, size: tuple[int, ...]) -> int:
        voxels = math.prod(self._padded_size(size))
        network = self.architecture.peak_values * voxels + self.architecture.fixed_values
        return int(network * self.precision.itemsize + _BYTES_BESIDE_NETWORK * voxels)

    def _purpose(self, size: tuple[int, ...]) -> str:
        z, y, x = size
        return f"embedding {x} x {y} x {z} voxels of {self.spacing:g} mm with {self.name}"

    def _modality_of(self, image: Image) -> str:
        """The modality to preprocess for; warns where the model was not made for the volume's."""
        if self.suits(image):
            return _modality(image)
        kind = image.modality or "a volume that does not look like one"
        warnings.warn(
            f"the model {self.name} was made for CT, not for {kind}; its features mean little there",
            RegistrationWarning,
            stacklevel=3,
        )
        return "CT"

    def _preprocessing(self, modality: str) -> Callable[[Tensor], Tensor]:
        return self.architecture.preprocess[modality]

    @property
    def _beyond_ends(self) -> int:
        """Slices that are added at either end."""
        multiple = self.architecture.multiple[0]
        return multiple * math.ceil(_BEYOND_ENDS_MM / (self.architecture.spacing * multiple))

    def _padded_size(self, size: Sequence[int]) -> Shape:
        depth, height, width = size
        size = depth + 2 * self._beyond_ends, height, width
        depth, height, width = (n + -n % m for n, m in zip(size, self.architecture.multiple, strict=True))
        return depth, height, width

    def _padded(self, prepared: Tensor) -> Tensor:
        """With the outermost slices of the body repeated beyond its ends, and air beside it."""
        depth, height, width = prepared.shape[2:]
        shape = (len(prepared), 1, *self._padded_size(prepared.shape[2:]))
        air, first = self.architecture.air, self._beyond_ends
        padded = prepared.new_full(shape, air, dtype=self.precision)
        inner = padded[:, :, :, :height, :width]
        inner[:, :, first : first + depth] = prepared
        continue_beyond_ends(inner, first, (prepared.mean(dim=(0, 1, 3, 4)) - air).tolist(), air)
        return padded

    def _between_ends(self, vectors: Tensor, size: torch.Size, stride: Shape) -> Tensor:
        """Without the padding."""
        depth, height, width = _divided(size, stride)
        first = self._beyond_ends // stride[0]
        return vectors[:, :, first : first + depth, :height, :width]

    def _finished(self, vectors: Tensor) -> Tensor:
        """Of unit length in the precision they are handed out in."""
        vectors = vectors.to(self.feature_precision, memory_format=torch.channels_last_3d)
        if vectors.dtype is not self.precision:
            vectors /= torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_(min=1e-6)
        return vectors.contiguous(memory_format=torch.channels_last_3d)


def _divided(size: torch.Size, stride: Shape) -> Shape:
    depth, height, width = (-(-n // s) for n, s in zip(size, stride, strict=True))
    return depth, height, width


def _modality(image: Image) -> str:
    """ "CT" (CBCT included) or "MR", which stands for any other."""
    looks_like_ct = image.modality is None and float(image.data.min()) < _BELOW_TISSUE
    return "CT" if image.is_ct or looks_like_ct else "MR"


def _out_of_memory(error: Exception) -> bool:
    """Whether that is what torch says when an allocation fails; on the CPU it has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
