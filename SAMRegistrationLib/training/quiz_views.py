"""Views of training volumes for the query point network, written once and drawn as pairs again and again.

A view is a volume under large rigid motion, scaling, deformation, a cropped field of view and changed contrast, as
it would come from a file: with the embedding that the frozen network gives it then. Two views of one volume are a
pair of known correspondence, for each knows where its places lie in the volume.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..features.base import FeatureExtractor, FeatureMap
from ..grid import Grid
from ..image import Image
from ..methods.quiz_inputs import IMAGE_MM, QuizVolume, body_corners, token_features
from .cache import OUTSIDE, CachedVolume
from .checkpoint import write_whole
from .config import PhotometricConfig
from .distributed import Processes
from .photometric import PhotometricAugmentation
from .views import Placement, Source, View, locate, positions_of, resample_source, rotation_matrix, sample_map

MESH_MM = 16.0
"""Distance of the places whose position in the volume is stored; the stride of the coarse embedding too."""

PHOTOMETRIC = PhotometricConfig(slab_probability=0.0)
"""Where a scan ends is a matter of `QuizViewConfig`."""

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class QuizViewConfig:
    """How views are made; lengths in mm, angles in degrees.

    Args:
        spacing: of a view's voxels.
        upright_share: how often a view is turned by a few degrees only, as patients lie in scanners.
        upright_deviation: standard deviation of these turns about each axis.
        largest_angle: of the others, about any axis.
        scale: smallest and largest factor of the anatomy's size, drawn log-uniformly.
        elastic: largest standard deviation of the control points of the deformation.
        elastic_grid: control points (z, y, x).
        crop_probability, least_kept: how often the field of view ends early along z and along x or y, and the
            least share of the body that is then left.
        margin: of air around the body.
        most_voxels: of a view; more are cut off at the ends of the body.
    """

    spacing: float = 2.0
    upright_share: float = 0.35
    upright_deviation: float = 5.0
    largest_angle: float = 45.0
    scale: tuple[float, float] = (0.7, 1.2)
    elastic: float = 7.0
    elastic_grid: tuple[int, int, int] = (5, 5, 6)
    crop_probability: tuple[float, float] = (0.6, 0.3)
    least_kept: tuple[float, float] = (0.4, 0.65)
    margin: float = 10.0
    most_voxels: int = 2_500_000


@dataclass(frozen=True, eq=False)
class QuizView:
    """A view in its own frame: mm along x, y, z from the outer corner of its first voxel.

    Args:
        name: of the file.
        volume: what was cut out, with its embedding if it has one.
        places: where its places lie in the cached volume, and which of them are shown.
        source: the cached volume.
    """

    name: str
    volume: QuizVolume
    places: View
    source: CachedVolume

    def draw_places(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random shown places (n, 3) of the body, in the view and in the cached volume; n may be smaller."""
        cells = torch.nonzero(self.places.visible).flip(1)
        chosen = cells[torch.randint(len(cells), (count,), generator=generator)] if len(cells) else cells
        voxels = chosen + torch.rand(chosen.shape, generator=generator) - 0.5
        voxels = torch.minimum(voxels.clamp(min=0), torch.tensor(self.places.mesh.shape[:0:-1]) - 1.0)
        return mesh_grid_to_view(voxels), sample_map(self.places.mesh, voxels)

    def find(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (n, 3) in the view of places (n, 3) of the cached volume, and whether they are shown (n,)."""
        voxels, inside = locate(self.places, places)
        shown = sample_map(self.places.visible[None].float(), voxels)[:, 0] > 0.5
        return mesh_grid_to_view(voxels), inside & shown


def mesh_grid_to_view(voxels: Tensor) -> Tensor:
    """View positions (n, 3) in mm of positions in voxels of the stored mesh."""
    return (voxels + 0.5) * MESH_MM


def view_file(volume: CachedVolume, number: int) -> str:
    """Name of the file of a volume's n-th view."""
    return f"{volume.name}_{number}.npz"


def prepare_views(
    volumes: list[CachedVolume],
    folder: Path,
    extractor: FeatureExtractor | None,
    count: int,
    seed: int,
    config: QuizViewConfig | None = None,
    processes: Processes | None = None,
) -> Iterator[tuple[int, int]]:
    """Write this process's share of `count` views of every volume that are not there yet; yields its progress.

    Two of every volume come first, in random order of the volumes, so that training may begin before the end. All
    is computed on the process's device.
    """
    processes = processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    order = torch.randperm(len(volumes), generator=torch.Generator().manual_seed(seed)).tolist()
    own = order[processes.rank :: processes.count]
    wanted = [(n, i) for first in range(0, count, 2) for i in own for n in range(first, min(first + 2, count))]
    for done, (number, index) in enumerate(wanted, start=1):
        file = folder / view_file(volumes[index], number)
        if not file.is_file():
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) * 100_003 + index)
            _write_view(file, volumes[index], extractor, generator, config or QuizViewConfig(), processes.device)
        yield done, len(wanted)


def read_view(file: Path, volume: CachedVolume, device: torch.device | str = "cpu") -> QuizView | None:
    """A view that was written; None if it is not there, damaged or shows nothing.

    Image and embedding go to the device, the latter in half precision; geometry stays on the CPU, where looking up
    a few hundred points takes less time than a GPU needs to begin.
    """
    try:
        with np.load(file) as stored:
            values = {name: torch.from_numpy(stored[name]) for name in stored.files}
        image = Image(values["image"].to(device).float(), _grid(values["image"], IMAGE_MM), "int16", "CT")
        mesh, visible = values["mesh"].float(), values["visible"]
        embedding = values.get("embedding")
        tokens = None
        if embedding is not None:
            tokens = FeatureMap(embedding[None].to(device), _grid(embedding[0], MESH_MM))
        places = View(image.tensor(), mesh, visible, visible, values["matrix"])
        volume_of_view = QuizVolume(image, tokens, values["body"].numpy())
    except _UNREADABLE:
        return None
    return QuizView(file.stem, volume_of_view, places, volume) if bool(visible.any()) else None


def _write_view(
    file: Path,
    volume: CachedVolume,
    extractor: FeatureExtractor | None,
    generator: torch.Generator,
    config: QuizViewConfig,
    device: torch.device,
) -> None:
    arrays = [torch.from_numpy(values)[None, None].to(device) for values in (volume.image(), volume.labels())]
    source = Source(arrays[0], arrays[1], volume.spacing)
    placement, shape = draw_view(source, config, generator)
    positions = positions_of(placement.to(device), shape)
    image, kept = PhotometricAugmentation(PHOTOMETRIC, generator)(resample_source(source, positions))
    body = kept & (_codes_at(source, positions) != OUTSIDE)
    values: dict[str, Tensor] = {}
    view = Image(image[0, 0], _grid(image[0, 0], config.spacing), "int16", "CT")
    if extractor is not None:
        features = extractor.extract(view)
        values["embedding"] = token_features(features).data[0].half()
    steps = round(MESH_MM / config.spacing)
    small = view.resampled(view.grid.resampled(IMAGE_MM))
    values["image"] = small.data.round().clamp(-1024, 3071).to(torch.int16)
    values["mesh"] = functional.avg_pool3d(positions, steps)[0]
    values["visible"] = functional.avg_pool3d(body[None].float(), steps)[0] > 0.5
    values["matrix"] = placement.matrix * steps
    values["body"] = torch.from_numpy(body_corners(body, view.grid))
    stored: dict[str, Any] = {name: value.cpu().numpy() for name, value in values.items()}

    def save(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **stored)

    write_whole(file, save)


def draw_view(
    source: Source, config: QuizViewConfig, generator: torch.Generator
) -> tuple[Placement, tuple[int, int, int]]:
    """Where a view lies in a volume, and its shape (z, y, x), a multiple of the mesh."""
    matrix = _draw_matrix(config, generator)
    body = source.body_places if len(source.body_places) else torch.tensor([[0.0, 0.0, 0.0]])
    middle = (body.amin(dim=0) + body.amax(dim=0)) / 2
    seen = (body - middle) @ torch.linalg.inv(matrix).T
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    low, high = _cropped(low, high, config, generator)
    margin = config.margin / config.spacing
    low, high = low - margin, high + margin
    multiple = round(MESH_MM / config.spacing)
    cells = ((high - low) / multiple).ceil().clamp(min=2).int()
    while int(cells.prod()) * multiple**3 > config.most_voxels:
        cells[int(cells.argmax())] -= 1
    center = middle + matrix @ ((low + high) / 2)
    amplitude = _uniform(generator) * config.elastic
    control = torch.randn((1, 3, *config.elastic_grid), generator=generator) * amplitude
    x, y, z = (cells * multiple).tolist()
    return Placement(center, matrix, control), (z, y, x)


def _draw_matrix(config: QuizViewConfig, generator: torch.Generator) -> Tensor:
    smallest, largest = config.scale
    size = config.spacing / math.exp(_uniform(generator, math.log(smallest), math.log(largest)))
    if _uniform(generator) < config.upright_share:
        angles = torch.randn(3, generator=generator) * math.radians(config.upright_deviation)
        return rotation_matrix(angles) * size
    axis = functional.normalize(torch.randn(3, generator=generator), dim=0)
    x, y, z = (axis * math.radians(_uniform(generator, 0.0, config.largest_angle))).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return torch.linalg.matrix_exp(cross) * size


def _cropped(
    low: Tensor, high: Tensor, config: QuizViewConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Bounds of which a random part is left along axes that are drawn."""
    low, high = low.clone(), high.clone()
    for axis in (2, int(_uniform(generator) < 0.5)):
        across = int(axis != 2)
        if _uniform(generator) < config.crop_probability[across]:
            length = high[axis] - low[axis]
            kept = length * _uniform(generator, config.least_kept[across], 1.0)
            low[axis] += (length - kept) * _uniform(generator)
            high[axis] = low[axis] + kept
    return low, high


def _codes_at(source: Source, positions: Tensor) -> Tensor:
    """Codes (z, y, x) of the nearest voxels; outside the volume what means outside the body."""
    voxel = (positions[0] / source.spacing).round_().to(torch.int32)
    size = voxel.new_tensor(source.codes.shape[:1:-1])[:, None, None, None]
    inside = ((voxel >= 0) & (voxel < size)).all(dim=0)
    x, y, z = torch.minimum(voxel.clamp_(min=0), size - 1).long()
    return torch.where(inside, source.codes[0, 0][z, y, x], OUTSIDE)


def _grid(values: Tensor, spacing: float) -> Grid:
    """Where a map (z, y, x) of that spacing lies in the frame of the view that it covers."""
    depth, height, width = values.shape
    return Grid((width, height, depth), (spacing,) * 3, (spacing / 2,) * 3)


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
