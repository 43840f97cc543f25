"""Pairs of points that a user has set, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, UsageError
from ..image import Image
from ..transforms import FloatArray, Transform, transform_points

WEIGHT_MM = 1.0
"""How far off a landmark may be before it pulls with full strength, if nothing else is said."""

AIR_HU = -700.0
_LUNG_REACH_VOXELS = 2

_SWAP_GAIN = 0.34
_SWAP_LEAST_MM = 15.0
"""An exchange of sides is told where it leaves this share of an error that is at least so large."""


@dataclass(frozen=True, eq=False)
class LandmarkPairs:
    """Corresponding points.

    Args:
        fixed: (N, 3) LPS mm in the fixed world.
        moving: (N, 3) LPS mm in the moving world.
        weights_mm: (N,) how far off each pair may be; `WEIGHT_MM` by default.
        exact: (N,) bool, which pairs are to be met exactly; none by default.
        labels: N names; numbers from 1 by default.

    Raises:
        InputError: if the numbers of points differ, or a value is not finite or a weight not positive.
    """

    fixed: FloatArray
    moving: FloatArray
    weights_mm: FloatArray
    exact: NDArray[np.bool_]
    labels: tuple[str, ...]

    def __init__(
        self,
        fixed: ArrayLike,
        moving: ArrayLike,
        weights_mm: ArrayLike | None = None,
        exact: ArrayLike | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        first, second = (np.asarray(points, dtype=np.float64).reshape(-1, 3) for points in (fixed, moving))
        if len(first) != len(second):
            raise InputError(
                f"there are {len(first)} fixed and {len(second)} moving landmarks; each needs its partner"
            )
        count = len(first)
        weights = np.full(count, WEIGHT_MM) if weights_mm is None else np.asarray(weights_mm, dtype=np.float64)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise InputError("a landmark has a coordinate that is not a finite number")
        if weights.shape != (count,) or not np.isfinite(weights).all() or (count and weights.min() <= 0):
            raise InputError("the weight of a landmark must be a positive number of mm")
        wanted = np.zeros(count, bool) if exact is None else np.broadcast_to(np.asarray(exact, dtype=bool), count)
        names = tuple(label or str(number) for number, label in enumerate(labels, 1)) or tuple(
            str(number) for number in range(1, count + 1)
        )
        for name, value in (
            ("fixed", first),
            ("moving", second),
            ("weights_mm", weights),
            ("exact", np.array(wanted)),
            ("labels", names),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.fixed)

    @classmethod
    def from_json(cls, content: Iterable[Any]) -> LandmarkPairs:
        """From objects with `fixed` and `moving` (LPS mm), and optionally `weight_mm`, `exact` and `label`.

        Raises:
            UsageError: if something is missing or of another type.
            InputError: as of the class.
        """
        fixed, moving, weights, exact, labels = [], [], [], [], []
        for number, entry in enumerate(content, 1):
            if not isinstance(entry, Mapping):
                raise UsageError("landmarks must be objects with a fixed and a moving position")
            if entry.get("fixed") is None or entry.get("moving") is None:
                missing = "fixed" if entry.get("fixed") is None else "moving"
                raise InputError(f"landmark {number} has no {missing} position; each needs its partner")
            try:
                fixed.append(np.array(entry["fixed"], dtype=np.float64).reshape(3))
                moving.append(np.array(entry["moving"], dtype=np.float64).reshape(3))
                weights.append(float(entry.get("weight_mm") or WEIGHT_MM))
            except (TypeError, ValueError) as error:
                raise UsageError(f"landmark {number} is not as it should be: {error}") from error
            exact.append(bool(entry.get("exact", False)))
            labels.append(str(entry.get("label") or ""))
        return cls(
            np.array(fixed).reshape(-1, 3), np.array(moving).reshape(-1, 3), np.array(weights), exact, labels
        )

    def selected(self, chosen: ArrayLike) -> LandmarkPairs:
        """The pairs of a boolean mask or of indices."""
        index = np.arange(len(self))[np.asarray(chosen)]
        labels = tuple(self.labels[i] for i in index)
        return LandmarkPairs(
            self.fixed[index], self.moving[index], self.weights_mm[index], self.exact[index], labels
        )

    def errors(self, transform: Transform) -> FloatArray:
        """Target registration errors in mm (N,)."""
        return np.linalg.norm(transform_points(transform, self.fixed) - self.moving, axis=1)


def require_usable(pairs: LandmarkPairs, accepted: Transform, fixed: Image, moving: Image) -> None:
    """Refuse landmarks that lie outside their volumes, that come twice, or whose sides are exchanged.

    Raises:
        InputError: with one sentence that names the landmarks.
    """
    _refuse_exchanged_volumes(pairs, accepted)
    for name, points, image in (("fixed", pairs.fixed, fixed), ("moving", pairs.moving, moving)):
        outside = ~image.grid.contains(points)
        if outside.any():
            raise InputError(f"the {name} position of {_named(pairs, outside)} lies outside the {name} volume")
    for first, second in combinations(range(len(pairs)), 2):
        if np.linalg.norm(pairs.fixed[first] - pairs.fixed[second]) < 1e-3:
            names = _named(pairs, [first, second])
            raise InputError(f"the fixed positions of {names} are the same; one of them must go")
    _require_right_sides(pairs, accepted, moving)


def in_air(pairs: LandmarkPairs, fixed: Image, moving: Image) -> NDArray[np.bool_]:
    """Which landmarks of two CTs lie in air where nothing else is near, and so belong to no anatomy: (N,)."""
    lonely = np.zeros(len(pairs), bool)
    for points, image in ((pairs.fixed, fixed), (pairs.moving, moving)):
        if image.is_ct and len(points):
            lonely |= _highest_near(image, points) < AIR_HU
    return lonely


def _highest_near(image: Image, points: FloatArray) -> FloatArray:
    """The largest value within a few voxels of each point; bronchi and lung lie next to something."""
    reach = range(-_LUNG_REACH_VOXELS, _LUNG_REACH_VOXELS + 1)
    offsets = np.stack(np.meshgrid(reach, reach, reach), -1).reshape(-1, 3)
    nearest = np.rint(image.grid.to_voxel(points))[:, None] + offsets
    x, y, z = (np.clip(nearest, 0, np.asarray(image.grid.size) - 1).astype(int)).transpose(2, 0, 1)
    return image.data.cpu().numpy()[z, y, x].max(axis=1)


def _require_right_sides(pairs: LandmarkPairs, accepted: Transform, moving: Image) -> None:
    """Refuse pairs that fit far better mirrored, or with two of their partners exchanged."""
    expected = transform_points(accepted, pairs.fixed)
    errors = np.linalg.norm(expected - pairs.moving, axis=1)
    if len(pairs) and np.median(errors) > _SWAP_LEAST_MM:
        _refuse_mirrored(pairs, expected, float(np.median(errors)), moving)
    for first, second in combinations(range(len(pairs)), 2):
        given = errors[first] + errors[second]
        crossed = np.linalg.norm(expected[first] - pairs.moving[second]) + np.linalg.norm(
            expected[second] - pairs.moving[first]
        )
        if given > 2 * _SWAP_LEAST_MM and crossed < _SWAP_GAIN * given:
            raise InputError(
                f"the moving positions of {_named(pairs, [first, second])} look exchanged "
                f"({_direction(expected[first] - expected[second])}): swap them"
            )


def _refuse_exchanged_volumes(pairs: LandmarkPairs, accepted: Transform) -> None:
    """Refuse lists that fit far better the other way around."""
    if not len(pairs):
        return
    given = np.median(pairs.errors(accepted))
    exchanged = np.median(np.linalg.norm(transform_points(accepted, pairs.moving) - pairs.fixed, axis=1))
    if given > 2 * _SWAP_LEAST_MM and exchanged < _SWAP_GAIN * given:
        raise InputError("the fixed and the moving landmarks look exchanged: give each volume its own")


def _refuse_mirrored(pairs: LandmarkPairs, expected: FloatArray, given: float, moving: Image) -> None:
    middle = float(moving.grid.center[0])
    signs = pairs.moving * (-1, -1, 1)
    mirrored = pairs.moving * (-1, 1, 1) + (2 * middle, 0, 0)
    mirrored_at_zero = pairs.moving * (-1, 1, 1)
    cases = (
        (signs, "the moving landmarks look like RAS coordinates where LPS is needed: change the signs of x and y"),
        (mirrored, "the moving landmarks look mirrored, left for right: set them on the other side"),
        (mirrored_at_zero, "the moving landmarks look mirrored, left for right: change the sign of x"),
    )
    for candidate, sentence in cases:
        # Near the middle, mirrored landmarks fit by chance.
        spread = np.median(np.linalg.norm(candidate - pairs.moving, axis=1))
        if (
            np.median(np.linalg.norm(expected - candidate, axis=1)) < _SWAP_GAIN * given
            and spread > _SWAP_LEAST_MM
        ):
            raise InputError(sentence)


def _direction(difference: FloatArray) -> str:
    words = ("left for right", "front for back", "head for foot")
    return words[int(np.abs(difference).argmax())]


def _named(pairs: LandmarkPairs, chosen: ArrayLike) -> str:
    names = [pairs.labels[i] for i in np.arange(len(pairs))[np.asarray(chosen)]]
    if len(names) == 1:
        return f"landmark {names[0]}"
    return f"landmarks {', '.join(names[:-1])} and {names[-1]}"
