"""How well features match on volumes kept out of training.

Two measures. *Self matching*: two strongly changed views of one volume; the distance in mm between where a point
is matched and where it is. *Subject matching*: points inside a structure of one subject are looked up in another
subject, without any alignment; the share that falls into the same structure, and how far the structure's center
is from that of the matches (both the median along x, y and z, which a few stray matches do not move, and which for
a bent structure like the mandible is not its mean); of tubes that are contoured to arbitrary levels also level by
level (`structure_centers`).

Both are measured for three ways of matching. *Nearest*: the voxel of the other volume's whole joined map that is
most similar, made finer by a parabola through its neighbors; it says what the vectors alone can do. *Structural*:
with what lies around the point inside the body (`matching.match_structurally`). *Aligned*: the same after the
second volume was aligned and embedded again, as users get their points matched (`methods.aligned_matching`); only
for features that find places all over a body, so not for MIND.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..features.base import FeatureExtractor
from ..image import Image
from ..image_io import read_image, read_labels
from ..matching import match_structurally
from ..methods.aligned_matching import AlignedPointMatcher
from ..methods.point_matching import EmbeddedVolume
from .evaluation_views import changed_views
from .manifest import UNSPECIFIC_LABELS, Volume
from .structure_centers import OPEN_ENDED_LABELS, center_distance, center_line_distance
from .voxel_search import nearest_voxels

POINTS_PER_VOLUME = 400
POINTS_PER_STRUCTURE = 150
CLOSE_MM = 5.0
WAYS = ("nearest", "structural", "aligned")


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
    return {
        way: _self_summary({name: of_ways[way] for name, of_ways in errors.items()})
        for way in WAYS
        if all(way in of_ways for of_ways in errors.values())
    }


def subject_matching(extractor: FeatureExtractor, pairs: list[tuple[Volume, Volume]]) -> dict[str, Any]:
    """Same-structure share and center distance per structure, averaged over pairs, and over structures."""
    found: dict[str, dict[str, list[_StructureResult]]] = {way: {} for way in WAYS}
    known: dict[Volume, _Subject] = {}
    for fixed, moving in pairs:
        # Pairs follow each other like the links of a chain, so that every subject is embedded once.
        known = {volume: known.get(volume) or _embed(extractor, volume) for volume in (fixed, moving)}
        for name, of_ways in _pair_results(known[fixed], known[moving], extractor).items():
            for way, result in of_ways.items():
                found[way].setdefault(name, []).append(result)
    return {
        "pairs": len(pairs),
        **{way: _subject_summary(of_way) for way, of_way in found.items() if of_way or not pairs},
    }


def format_evaluation(result: dict[str, Any]) -> str:
    """The numbers as a few lines of text."""
    own, subjects = result["self"], result["subjects"]
    lines = [f"features {result['features']}"]
    lines += [
        f"self matching, {way}: {own[way]['points']} points, median {own[way]['median_mm']:.2f} mm, "
        f"95th percentile {own[way]['p95_mm']:.2f} mm, {100 * own[way]['within_5_mm']:.1f} % within 5 mm"
        for way in WAYS
        if way in own
    ]
    for way in (way for way in WAYS if way in subjects):
        lines.append(
            f"subject matching, {way}: {subjects['pairs']} pairs, {100 * subjects[way]['same_structure']:.1f} % "
            f"into the same structure, centers {subjects[way]['center_mm']:.1f} mm off, "
            f"{subjects[way]['center_by_level_mm']:.1f} mm with tubes level by level"
        )
        lines += [
            f"  {name:24} {100 * one['same_structure']:5.1f} %  {one['center_mm']:5.1f} mm  "
            f"{one['center_by_level_mm']:5.1f} mm  {one['pairs']} pairs"
            for name, one in subjects[way]["structures"].items()
        ]
    return "\n".join(lines)


class _Ways:
    """Every way of matching points of one volume in another."""

    def __init__(self, fixed: EmbeddedVolume, moving: EmbeddedVolume, extractor: FeatureExtractor) -> None:
        self.fixed = fixed.index
        self.moving = moving.index
        self.moving_features = moving.features
        finds_places = fixed.features.coarse is not None
        self.aligned = AlignedPointMatcher(fixed, moving, extractor) if finds_places else None

    def match(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """World positions (n, 3) of the partners of points (n, 3) by each way that the features allow."""
        nearest = nearest_voxels(self.fixed.vectors_at(points), self.moving_features.joined())
        found = {
            "nearest": self.moving.grid.to_world(nearest.cpu().numpy()),
            "structural": match_structurally(points, self.fixed, self.moving).matched,
        }
        if self.aligned is not None:
            found["aligned"] = self.aligned.match(points).matched
        return found


def _self_errors(extractor: FeatureExtractor, volume: Volume, seed: int) -> dict[str, np.ndarray]:
    first, second = changed_views(read_image(volume.path, "CT"), seed)
    points, truth = _corresponding(first.positions, second.positions, first.body, seed)
    views = [EmbeddedVolume(view.image, extractor.extract(view.image)) for view in (first, second)]
    found = _Ways(views[0], views[1], extractor).match(first.image.grid.to_world(points))
    # Errors are measured in the undistorted volume, where a mm is a mm.
    return {
        way: np.linalg.norm(second.source_of(second.image.grid.to_voxel(places)) - truth, axis=-1)
        for way, places in found.items()
    }


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
    """A subject's volume with its features, and label maps by scheme."""

    volume: EmbeddedVolume
    labels: dict[str, Image]


@dataclass(frozen=True)
class _StructureResult:
    """The share of a structure's points that fall into it, and the distance in mm of the centers, whole and by
    level."""

    share: float
    distance: float
    by_level: float


def _embed(extractor: FeatureExtractor, volume: Volume) -> _Subject:
    image = read_image(volume.path, "CT")
    labels = {label.scheme: read_labels(label.path, image) for label in volume.labels}
    return _Subject(EmbeddedVolume(image, extractor.extract(image)), labels)


def _pair_results(
    fixed: _Subject, moving: _Subject, extractor: FeatureExtractor
) -> dict[str, dict[str, _StructureResult]]:
    """By structure and way of matching."""
    ways = _Ways(fixed.volume, moving.volume, extractor)
    results = {}
    for scheme in fixed.labels.keys() & moving.labels.keys():
        query_labels, target_labels = fixed.labels[scheme], moving.labels[scheme]
        shared = np.intersect1d(query_labels.data.unique().numpy(), target_labels.data.unique().numpy())
        for value in shared[shared > 0]:
            if int(value) not in UNSPECIFIC_LABELS.get(scheme, ()):
                is_tube = int(value) in OPEN_ENDED_LABELS.get(scheme, ())
                world = _structure_points(query_labels, float(value))
                picks = np.linspace(0, len(world) - 1, min(len(world), POINTS_PER_STRUCTURE)).astype(int)
                results[f"{scheme} {int(value)}"] = {
                    way: _structure_result(places, target_labels, float(value), is_tube)
                    for way, places in ways.match(world[picks]).items()
                }
    return results


def _structure_result(places: np.ndarray, labels: Image, value: float, is_tube: bool) -> _StructureResult:
    indices = np.rint(labels.grid.to_voxel(places)).astype(int)
    indices = indices.clip(0, np.asarray(labels.grid.size) - 1)
    hits = labels.data.numpy()[indices[:, 2], indices[:, 1], indices[:, 0]] == value
    structure = _structure_points(labels, value)
    distance = center_distance(places, structure)
    by_level = center_line_distance(places, structure) if is_tube else distance
    return _StructureResult(float(hits.mean()), distance, by_level)


def _structure_points(labels: Image, value: float) -> np.ndarray:
    """World positions (n, 3) of a structure's voxels."""
    voxels = np.argwhere(labels.data.numpy() == value)[:, ::-1]
    return np.asarray(labels.grid.to_world(voxels))


def _self_summary(errors: dict[str, np.ndarray]) -> dict[str, Any]:
    together = np.concatenate(list(errors.values())) if errors else np.zeros(0)
    volumes = {name: _error_summary(values) for name, values in errors.items()}
    return {**_error_summary(together), "volumes": volumes}


def _subject_summary(found: dict[str, list[_StructureResult]]) -> dict[str, Any]:
    structures = {
        name: {
            "same_structure": float(np.mean([result.share for result in results])),
            "center_mm": float(np.mean([result.distance for result in results])),
            "center_by_level_mm": _mean(r.by_level for r in results if not np.isnan(r.by_level)),
            "pairs": len(results),
        }
        for name, results in sorted(found.items())
    }
    return {
        "same_structure": _mean(item["same_structure"] for item in structures.values()),
        "center_mm": _mean(item["center_mm"] for item in structures.values()),
        "center_by_level_mm": _mean(item["center_by_level_mm"] for item in structures.values()),
        "structures": structures,
    }


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
