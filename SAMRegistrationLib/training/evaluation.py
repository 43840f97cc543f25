"""How well features match on volumes kept out of training.

Two measures. *Self matching*: two strongly changed views of one volume; the distance in mm between where a point
is matched and where it is. *Subject matching*: points inside a structure of one subject are looked up in another
subject, without any alignment; the share that falls into the same structure, and how far the structure's center
is from that of the matches (both the median along x, y and z, which a few stray matches do not move, and which for
a bent structure like the mandible is not its mean). A match is the voxel of the other volume's whole joined map
that is most similar, made finer by a parabola through its neighbors.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..features.base import FeatureExtractor, FeatureMap
from ..image import Image
from ..image_io import read_image, read_labels
from ..matching import query_vectors
from .evaluation_views import changed_views
from .manifest import UNSPECIFIC_LABELS, Volume

POINTS_PER_VOLUME = 400
POINTS_PER_STRUCTURE = 150
CLOSE_MM = 5.0
QUERIES_AT_ONCE = 64


def evaluate_features(
    extractor: FeatureExtractor, volumes: list[Volume], most_volumes: int, most_pairs: int, seed: int
) -> dict[str, Any]:
    """Both measures on (at most so many of) the CT volumes and on pairs of labelled subjects of one region."""
    usable = [volume for volume in volumes if volume.modality in ("CT", "CBCT")]
    return {
        "features": extractor.name,
        "seed": seed,
        "self": self_matching(extractor, usable[:most_volumes], seed),
        "subjects": subject_matching(extractor, draw_pairs(usable, most_pairs, seed)),
    }


def draw_pairs(volumes: list[Volume], count: int, seed: int) -> list[tuple[Volume, Volume]]:
    """At most `count` ordered pairs of different subjects with labels of the most common scheme."""
    schemes: dict[str, list[Volume]] = {}
    for volume in volumes:
        for label in volume.labels:
            schemes.setdefault(label.scheme, []).append(volume)
    members = max(schemes.values(), key=len, default=[])
    shuffled = random.Random(seed).sample(members, len(members))
    pairs = [
        (first, shuffled[(index + step) % len(shuffled)])
        for step in range(1, len(shuffled))
        for index, first in enumerate(shuffled)
    ]
    return [pair for pair in pairs if pair[0].subject != pair[1].subject][:count]


def self_matching(extractor: FeatureExtractor, volumes: list[Volume], seed: int) -> dict[str, Any]:
    """Matching error between two views of each volume: rotations to 20 degrees, scale 0.8 to 1.25, elastic
    deformation to 15 mm, other grey values."""
    errors = {volume.name: _self_errors(extractor, volume, seed + index) for index, volume in enumerate(volumes)}
    together = np.concatenate(list(errors.values())) if errors else np.zeros(0)
    return {
        **_error_summary(together),
        "volumes": {name: _error_summary(values) for name, values in errors.items()},
    }


def subject_matching(extractor: FeatureExtractor, pairs: list[tuple[Volume, Volume]]) -> dict[str, Any]:
    """Same-structure share and center distance per structure, averaged over pairs, and over structures."""
    found: dict[str, list[tuple[float, float]]] = {}
    known: dict[Volume, _Subject] = {}
    for fixed, moving in pairs:
        # Pairs follow each other like the links of a chain, so that every subject is embedded once.
        known = {volume: known.get(volume) or _embed(extractor, volume) for volume in (fixed, moving)}
        for name, values in _pair_results(known[fixed], known[moving]).items():
            found.setdefault(name, []).append(values)
    structures = {
        name: {
            "same_structure": float(np.mean([share for share, _ in values])),
            "center_mm": float(np.mean([distance for _, distance in values])),
            "pairs": len(values),
        }
        for name, values in sorted(found.items())
    }
    return {
        "pairs": len(pairs),
        "same_structure": _mean(item["same_structure"] for item in structures.values()),
        "center_mm": _mean(item["center_mm"] for item in structures.values()),
        "structures": structures,
    }


def nearest_voxels(queries: Tensor, target: FeatureMap) -> Tensor:
    """Voxel coordinates (n, 3) as (x, y, z) of the most similar place of `target` for every query (n, C)."""
    shape = target.data.shape[2:]
    rows = target.data[0].flatten(1)
    places = []
    for chunk in queries.to(rows.dtype).split(QUERIES_AT_ONCE):
        similarity = chunk @ rows
        places.append(_refined(similarity.reshape(len(chunk), *shape), similarity.argmax(dim=1)))
    return torch.cat(places)


def format_evaluation(result: dict[str, Any]) -> str:
    """The numbers as a few lines of text."""
    own, subjects = result["self"], result["subjects"]
    lines = [
        f"features {result['features']}",
        f"self matching: {own['points']} points, median {own['median_mm']:.2f} mm, "
        f"95th percentile {own['p95_mm']:.2f} mm, {100 * own['within_5_mm']:.1f} % within 5 mm",
        f"subject matching: {subjects['pairs']} pairs, {100 * subjects['same_structure']:.1f} % into the same "
        f"structure, centers {subjects['center_mm']:.1f} mm off",
    ]
    lines += [
        f"  {name:24} {100 * item['same_structure']:5.1f} %  {item['center_mm']:5.1f} mm  {item['pairs']} pairs"
        for name, item in subjects["structures"].items()
    ]
    return "\n".join(lines)


def _self_errors(extractor: FeatureExtractor, volume: Volume, seed: int) -> np.ndarray:
    first, second = changed_views(read_image(volume.path, "CT"), seed)
    query_map = extractor.extract(first.image).joined()
    points, truth = _corresponding(first.positions, second.positions, first.body, seed)
    queries = query_vectors(query_map, first.image.grid.to_world(points))
    target_map = extractor.extract(second.image).joined()
    matched = second.image.grid.to_voxel(target_map.grid.to_world(nearest_voxels(queries, target_map).numpy()))
    # Errors are measured in the undistorted volume, where a mm is a mm.
    return np.linalg.norm(second.source_of(matched) - truth, axis=-1)


def _corresponding(first: Tensor, second: Tensor, body: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random body voxels (n, 3) of the first view that the second view contains, and their source positions."""
    voxels = torch.nonzero(body)
    picks = torch.randperm(len(voxels), generator=torch.Generator().manual_seed(seed))[: 4 * POINTS_PER_VOLUME]
    z, y, x = voxels[picks].unbind(1)
    sources = first[:, z, y, x].T
    sampled = second[:, ::4, ::4, ::4].flatten(1).T
    near = torch.cdist(sources, sampled).amin(dim=1) < 8.0
    chosen = torch.nonzero(near)[:POINTS_PER_VOLUME, 0]
    return torch.stack([x, y, z], dim=1)[chosen].numpy(), sources[chosen].numpy()


@dataclass(frozen=True, eq=False)
class _Subject:
    """A subject's joined features and label maps by scheme."""

    features: FeatureMap
    labels: dict[str, Image]


def _embed(extractor: FeatureExtractor, volume: Volume) -> _Subject:
    image = read_image(volume.path, "CT")
    labels = {label.scheme: read_labels(label.path, image) for label in volume.labels}
    return _Subject(extractor.extract(image).joined(), labels)


def _pair_results(fixed: _Subject, moving: _Subject) -> dict[str, tuple[float, float]]:
    results = {}
    for scheme in fixed.labels.keys() & moving.labels.keys():
        query_labels, target_labels = fixed.labels[scheme], moving.labels[scheme]
        shared = np.intersect1d(query_labels.data.unique().numpy(), target_labels.data.unique().numpy())
        for value in shared[shared > 0]:
            if int(value) not in UNSPECIFIC_LABELS.get(scheme, ()):
                results[f"{scheme} {int(value)}"] = _structure_result(
                    fixed.features, moving.features, query_labels, target_labels, float(value)
                )
    return results


def _structure_result(
    query_map: FeatureMap, target_map: FeatureMap, query_labels: Image, target_labels: Image, value: float
) -> tuple[float, float]:
    world = _structure_points(query_labels, value)
    picks = np.linspace(0, len(world) - 1, min(len(world), POINTS_PER_STRUCTURE)).astype(int)
    matched = nearest_voxels(query_vectors(query_map, world[picks]), target_map)
    places = target_map.grid.to_world(matched.numpy())
    indices = np.rint(target_labels.grid.to_voxel(places)).astype(int)
    indices = indices.clip(0, np.asarray(target_labels.grid.size) - 1)
    hits = target_labels.data.numpy()[indices[:, 2], indices[:, 1], indices[:, 0]] == value
    center = np.median(_structure_points(target_labels, value), axis=0)
    return float(hits.mean()), float(np.linalg.norm(np.median(places, axis=0) - center))


def _structure_points(labels: Image, value: float) -> np.ndarray:
    """World positions (n, 3) of a structure's voxels."""
    voxels = np.argwhere(labels.data.numpy() == value)[:, ::-1]
    return np.asarray(labels.grid.to_world(voxels))


def _refined(similarity: Tensor, best: Tensor) -> Tensor:
    """Add to each best voxel the vertex of the parabola through it and its neighbors along every axis."""
    _, depth, height, width = similarity.shape
    index = torch.stack([best // (height * width), best // width % height, best % width], dim=1)
    sizes = torch.tensor([depth, height, width])
    place = index.float()
    middle = _values_at(similarity, index)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.long)
        step[axis] = 1
        before, after = (
            _values_at(similarity, neighbor.clamp(min=0).minimum(sizes - 1))
            for neighbor in (index - step, index + step)
        )
        curvature = before - 2 * middle + after
        vertex = torch.where(curvature < -1e-6, (before - after) / (2 * curvature.clamp(max=-1e-6)), 0.0)
        place[:, axis] += vertex.clamp(-0.5, 0.5)
    return place.flip(1)


def _values_at(similarity: Tensor, index: Tensor) -> Tensor:
    """Row i of `similarity` (n, d, h, w) at voxel i of `index` (n, 3) in (z, y, x)."""
    z, y, x = index.unbind(1)
    return similarity[torch.arange(len(index)), z, y, x].float()


def _error_summary(errors: np.ndarray) -> dict[str, float]:
    if len(errors) == 0:
        return {"points": 0, "median_mm": float("nan"), "p95_mm": float("nan"), "within_5_mm": float("nan")}
    return {
        "points": len(errors),
        "median_mm": float(np.median(errors)),
        "p95_mm": float(np.quantile(errors, 0.95)),
        "within_5_mm": float((errors <= CLOSE_MM).mean()),
    }


def _mean(values: Any) -> float:
    collected = list(values)
    return float(np.mean(collected)) if collected else float("nan")
