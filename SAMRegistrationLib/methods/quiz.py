"""QUIZ: points of one volume looked up in another by a transformer, whatever lies between the two.

Liu et al., "QUIZ: an arbitrary volumetric point matching method for medical image registration". The paper's
alignment is the shift by the mean displacement of the queried points; here rigid and affine maps are also fitted
to the answers, robustly and weighed by their confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..alignment.feature_alignment import body_grid
from ..alignment.refinement import Model
from ..alignment.robust_fit import Fit, robust_fit
from ..errors import InputError
from ..grid import FloatArray, Grid
from ..matching import FeatureIndex
from ..models.quiz import QuizModel
from ..networks.quiz import Expectation, JointMap
from ..transforms import AffineTransform
from .point_matching import EmbeddedVolume, MatchedPoints, PointMatcher
from .quiz_inputs import QuizVolume, cube_embedding, cube_image, shared_cubes

MOST_QUERIES = 600
TOLERANCE_MM = 25.0
"""Distance at which an answer begins to count as wrong in a fit."""

_QUERIES_AT_ONCE = 1024
_WELL_INSIDE_MM = 20.0
_WIDTHS_MM = (40.0, 25.0, 20.0, 20.0, 20.0)
"""How near to where the map so far puts them points all over the bodies are then expected."""

_POINT_WIDTH_MM = 40.0
"""Single points move apart from the map of the whole body."""

_AGREEMENT_MM = 20.0
"""Distance from the map of the whole body at which an answer's support is a quarter."""


@dataclass(frozen=True, eq=False)
class QuizAnswers:
    """Points and where the network says that they lie.

    Args:
        points: (n, 3) in the fixed world, LPS mm.
        matched: (n, 3) in the moving world.
        sigma_mm: (n,) standard deviation of the error along an axis, as the network expects it.
    """

    points: FloatArray
    matched: FloatArray
    sigma_mm: FloatArray

    @property
    def confidence(self) -> FloatArray:
        """(n,) one over the variance, at most that of 3 mm."""
        return np.asarray(1 / np.maximum(self.sigma_mm, 3.0) ** 2)

    def turned(self) -> QuizAnswers:
        """The same pairs of places, as if the moving ones had been asked for the fixed."""
        return QuizAnswers(self.matched, self.points, self.sigma_mm)

    def joined(self, other: QuizAnswers) -> QuizAnswers:
        """These pairs of places and others."""
        both = (np.concatenate(parts) for parts in zip(vars(self).values(), vars(other).values(), strict=True))
        return QuizAnswers(*both)


class Quizzer:
    """Both volumes of a pair encoded once, to be asked any number of points.

    Args:
        model: the network.
        reference: the volume that the points belong to.
        search: the volume in which they are looked for.
        device: where to compute.
    """

    def __init__(
        self, model: QuizModel, reference: QuizVolume, search: QuizVolume, device: torch.device | str = "cpu"
    ) -> None:
        self._cubes = shared_cubes(reference, search)
        self._device = torch.device(device)
        self._network = model.network.to(self._device)
        volumes = list(zip((reference, search), self._cubes, strict=True))
        images = [cube_image(volume, cube, model.image_size).to(self._device) for volume, cube in volumes]
        embeddings = None
        if model.features is not None:
            first, second = (
                cube_embedding(volume, cube, model.embedding_size).to(self._device) for volume, cube in volumes
            )
            embeddings = first, second
        with torch.no_grad():
            self._joint: JointMap = self._network.encode(images[0], images[1], embeddings)

    def ask(
        self, points_world: ArrayLike, near: AffineTransform | None = None, width_mm: float = np.inf
    ) -> QuizAnswers:
        """Where points (n, 3) of the reference (LPS mm) lie in the searched volume.

        Args:
            points_world: the points.
            near: where they are expected, if there is a map that says so.
            width_mm: standard deviation of what is expected. Only a network that points (`Quiz`) heeds it.
        """
        points = np.asarray(points_world, dtype=np.float64).reshape(-1, 3)
        search = self._cubes[1]
        expected = points if near is None else search.to_cube(near.transform_points(points))
        queries, places = (
            torch.from_numpy(each).float().to(self._device) for each in (self._cubes[0].to_cube(points), expected)
        )
        matched, sigmas = [queries[:0]], [queries[:0, 0]]
        with torch.no_grad():
            for part, place in zip(queries.split(_QUERIES_AT_ONCE), places.split(_QUERIES_AT_ONCE), strict=True):
                expectation = None if near is None else Expectation(place[None], width_mm / (search.side / 2))
                answers = self._network.ask(self._joint, part[None], expectation)
                matched.append(part + answers.displacement[0])
                sigmas.append((answers.log_variance[0] / 2).exp())
        found = search.to_world(torch.cat(matched).double().cpu().numpy())
        return QuizAnswers(points, found, torch.cat(sigmas).double().cpu().numpy() * search.side / 2)


def mean_translation(answers: QuizAnswers) -> AffineTransform:
    """The paper's alignment: the shift by the mean displacement of the points asked."""
    return AffineTransform.translation((answers.matched - answers.points).mean(axis=0))


def shown_translation(points: FloatArray, transform: AffineTransform, shows: Grid) -> AffineTransform:
    """As `mean_translation`, by a map, of those points (n, 3) that the searched volume shows under it.

    The paper's landmarks were chosen in both volumes, while a cropped one does not show points all over a body.
    """
    places = transform.transform_points(points)
    shown = shows.contains(places)
    kept = shown if shown.any() else ~shown
    return AffineTransform.translation((places - points)[kept].mean(axis=0))


def shown_trust(answers: QuizAnswers, transform: AffineTransform, grids: tuple[Grid, Grid]) -> FloatArray:
    """How far answers may be trusted (n,) that say where places lie which the other volume may not show.

    Points all over a body get an answer within the other volume even where that does not show them, which draws
    the map. So only those count that a map puts well inside, whichever end they were asked from.

    Args:
        answers: from either end.
        transform: what is known of the map.
        grids: of the volume of the points, and of the searched one.
    """
    depth = np.minimum(
        depth_inside(grids[0], transform.inverse().transform_points(answers.matched)),
        depth_inside(grids[1], transform.transform_points(answers.points)),
    )
    return np.asarray(np.clip(depth / _WELL_INSIDE_MM, 0.0, 1.0))


def depth_inside(grid: Grid, points_world: FloatArray) -> FloatArray:
    """How far in mm positions (n, 3) lie from the nearest face of a grid's box; negative outside."""
    voxel = grid.to_voxel(points_world)
    to_face = np.minimum(voxel + 0.5, np.asarray(grid.size) - 0.5 - voxel) * np.asarray(grid.spacing)
    return np.asarray(to_face.min(axis=1))


def fit_answers(
    answers: QuizAnswers, model: Model = Model.AFFINE, seed: int = 0, trust: FloatArray | None = None
) -> Fit:
    """The map that most answers agree with, by their confidence.

    Args:
        answers: to the points.
        model: the most that may be fitted.
        seed: of the robust fit.
        trust: (n,) 0 to 1, by which the confidence is multiplied; answers of no trust take no part.

    Raises:
        InputError: if too few agree on any.
    """
    weights = answers.confidence / answers.confidence.max()
    if trust is not None:
        weights = weights * trust
    kept = weights > 0
    return robust_fit(answers.points[kept], answers.matched[kept], weights[kept], model, TOLERANCE_MM, seed=seed)


class QuizPointMatcher(PointMatcher):
    """Finds points by asking the network; the embeddings only say how alike both ends are.

    Args:
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        model: the network.
        seed: of the robust fits.
    """

    def __init__(self, fixed: EmbeddedVolume, moving: EmbeddedVolume, model: QuizModel, seed: int = 0) -> None:
        super().__init__(fixed, moving, seed)
        self.model = model

    def prepare(self) -> None:
        """Do now what the first points would otherwise have to wait for."""
        super().prepare()
        _ = self.backward

    @cached_property
    def forward(self) -> Quizzer:
        """From the fixed to the moving volume."""
        return Quizzer(self.model, self._volumes[0], self._volumes[1], self._device)

    @cached_property
    def backward(self) -> Quizzer:
        """From the moving to the fixed volume."""
        return Quizzer(self.model, self._volumes[1], self._volumes[0], self._device)

    @cached_property
    def fixed_answers(self) -> QuizAnswers:
        """Of points all over the fixed body."""
        return self.forward.ask(self._body_points[0])

    @cached_property
    def translation(self) -> AffineTransform:
        """The mean displacement of the points of the body that the moving volume shows, as far as can be told."""
        if self.body_fit is None:
            return mean_translation(self.fixed_answers)
        return shown_translation(self._body_points[0], self.body_fit.transform, self.moving.image.grid)

    @cached_property
    def body_fit(self) -> Fit | None:
        """The affine map (or what is supported of one) that the answers agree on; None where too few do.

        Asked are points all over either body in the other volume: the errors of both ways have little in common.
        With the map that the answers agree on they are asked again, nearer and nearer to where it puts them.
        """
        grids = self.fixed.image.grid, self.moving.image.grid
        fit: Fit | None = None
        for width in (np.inf, *_WIDTHS_MM):
            near = None if fit is None else fit.transform
            answers = self._answers_of_bodies(near, width)
            trust = None if near is None else shown_trust(answers, near, grids)
            try:
                fit = fit_answers(answers, seed=self.seed, trust=trust)
            except InputError:
                break
        return fit

    @cached_property
    def whole_body(self) -> AffineTransform:
        """A linear map of the whole body; the mean displacement where the answers agree on nothing else."""
        return mean_translation(self.fixed_answers) if self.body_fit is None else self.body_fit.transform

    @property
    def _device(self) -> torch.device:
        return self.fixed.features.fine.data.device

    @cached_property
    def _volumes(self) -> tuple[QuizVolume, QuizVolume]:
        fixed, moving = (quiz_volume(volume) for volume in (self.fixed, self.moving))
        return fixed, moving

    def _matched(self, points: FloatArray) -> MatchedPoints:
        near = None if self.body_fit is None else self.body_fit.transform
        answers = self.forward.ask(points, near, _POINT_WIDTH_MM)
        returned = self.backward.ask(answers.matched, _inverse(near), _POINT_WIDTH_MM).matched
        expected = self.whole_body.transform_points(points)
        support = agreement(np.linalg.norm(expected - answers.matched, axis=1))
        score = likeness_of_ends(self.fixed.index, self.moving.index, points, answers.matched)
        cycle = np.linalg.norm(returned - points, axis=1)
        return MatchedPoints(points, answers.matched, score, support, cycle, ("",) * len(points))

    def _answers_of_bodies(self, near: AffineTransform | None, width_mm: float) -> QuizAnswers:
        """Of points all over either body, expected where a map puts them; see `Quizzer.ask`."""
        found = self.forward.ask(self._body_points[0], near, width_mm)
        returned = self.backward.ask(self._body_points[1], _inverse(near), width_mm)
        return found.joined(returned.turned())

    @cached_property
    def _body_points(self) -> list[FloatArray]:
        """Points (n, 3) all over the fixed and the moving body."""
        return [body_grid(volume.body, most=MOST_QUERIES) for volume in (self.fixed, self.moving)]


def _inverse(transform: AffineTransform | None) -> AffineTransform | None:
    return None if transform is None else transform.inverse()


def quiz_volume(volume: EmbeddedVolume) -> QuizVolume:
    """What the network gets to see of a volume."""
    return QuizVolume.of(volume.image, volume.features)


def agreement(distance_mm: FloatArray) -> NDArray[np.float64]:
    """1 for answers where the map of the whole body puts them, falling to 0 with their distance from there."""
    return np.asarray(1 / (1 + (distance_mm / _AGREEMENT_MM) ** 2) ** 2)


def likeness_of_ends(
    source: FeatureIndex, target: FeatureIndex, points: FloatArray, matched: FloatArray
) -> FloatArray:
    """Cosine similarity of the embeddings at both ends of every match (n,)."""
    first, second = source.vectors_at(points).float(), target.vectors_at(matched).float()
    return np.asarray((first * second).sum(dim=1).double().cpu().numpy())
