"""Hard starts are what they say: turned about the center with the labels, cut to a known common part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SAMRegistrationLib.benchmark.geometry import center_of
from SAMRegistrationLib.benchmark.metrics import Judged, Score, evaluate
from SAMRegistrationLib.benchmark.pairs import Label, Pair, Start
from SAMRegistrationLib.benchmark.starts import (
    Cut,
    Turn,
    body_heights,
    cut_levels,
    drawn_turn,
    hard_start,
    kept,
    turned,
)
from SAMRegistrationLib.benchmark.suite import load_suite
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image_io import read_image, read_labels
from SAMRegistrationLib.metrics import center_distance_per_label
from SAMRegistrationLib.transforms import AffineTransform

HEIGHT = 100
SPACING_Z = 3.0
ORGANS = {1: (30, 34), 2: (48, 52), 3: (80, 86)}
"""First and last slice of box-like organs of the fixed body."""


def volume(values: np.ndarray, origin: tuple[float, float, float]) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((4.0, 5.0, SPACING_Z))
    image.SetOrigin(origin)
    return image


def body(shifted: int, origin: tuple[float, float, float]) -> tuple[sitk.Image, sitk.Image]:
    """A column of tissue in all slices but the first and the last two, and organs `shifted` slices higher."""
    values = np.full((HEIGHT, 12, 14), -1000, dtype=np.int16)
    values[2:-2, 3:9, 4:11] = 30
    labels = np.zeros(values.shape, dtype=np.uint8)
    for organ, (first, last) in ORGANS.items():
        labels[first + shifted : last + shifted + 1, 4:7, 5 + organ : 8 + organ] = organ
    return volume(values, origin), volume(labels, origin)


def written_pair(folder: Path, start: Turn | Cut) -> Pair:
    labels = tuple(Label(organ, f"organ {organ}", "organs") for organ in ORGANS)
    files = []
    for role, made in (("fixed", body(0, (10.0, -20.0, 50.0))), ("moving", body(4, (300.0, 7.0, -90.0)))):
        for kind, image in zip(("image", "labels"), made, strict=True):
            files.append(folder / f"{role}_{kind}.nii.gz")
            sitk.WriteImage(image, str(files[-1]))
    return Pair(
        "column",
        "starts",
        files[0],
        files[2],
        Start.CENTERS,
        label_maps=(files[1], files[3]),
        labels=labels,
        preparation=start,
    )


def judged(pair: Pair, matrix: np.ndarray, grid: Grid) -> list[Score]:
    return evaluate(Judged(pair, displacement_on(AffineTransform(matrix), grid)), ["labels"])


TO_MOVING = np.array([[1, 0, 0, 290.0], [0, 1, 0, 27.0], [0, 0, 1, -140 + 4 * SPACING_Z], [0, 0, 0, 1]])
"""From the fixed to the moving body before any start."""


def test_a_turn_is_about_the_center_and_takes_volume_and_labels_along() -> None:
    image, labels = body(0, (10.0, -20.0, 50.0))
    moved, moved_labels = turned(Turn(90.0, (1.0, -2.0, 3.0)), image, labels)
    x, y, z = center_of(image)
    np.testing.assert_allclose(center_of(moved), (x + 1, y - 2, z + 3), atol=1e-9)
    before = np.subtract(image.TransformIndexToPhysicalPoint((5, 2, 9)), (x, y, z))
    for one in (moved, moved_labels):
        after = np.subtract(one.TransformIndexToPhysicalPoint((5, 2, 9)), (x + 1, y - 2, z + 3))
        np.testing.assert_allclose(after, (-before[1], before[0], before[2]), atol=1e-9)


def test_drawn_turns_go_to_both_sides_shift_by_up_to_30_mm_and_are_repeatable() -> None:
    turns = [drawn_turn(45.0, (1, number)) for number in range(20)]
    assert {turn.degrees for turn in turns} == {-45.0, 45.0}
    lengths = [float(np.linalg.norm(turn.shift)) for turn in turns]
    assert np.mean(lengths) > 5 and max(lengths) <= 30
    assert drawn_turn(45.0, (1, 7)) == turns[7] != turns[8]


def test_the_body_ends_where_its_first_and_last_slices_do() -> None:
    image, _ = body(0, (10.0, -20.0, 50.0))
    assert body_heights(image) == pytest.approx((50 + 1.5 * SPACING_Z, 50 + 97.5 * SPACING_Z))


def test_cut_bodies_have_two_fifths_of_the_shorter_one_in_common() -> None:
    fixed, fixed_labels = body(0, (10.0, -20.0, 50.0))
    moving, moving_labels = body(4, (300.0, 7.0, -90.0))
    levels = cut_levels((fixed, moving), (fixed_labels, moving_labels), tuple(ORGANS))
    assert levels.offset == pytest.approx(-140 + 4 * SPACING_Z)
    length = 96 * SPACING_Z
    assert levels.fixed[1] - levels.fixed[0] == pytest.approx(0.6 * length)
    assert levels.moving[0] == pytest.approx(body_heights(moving)[0])
    assert max(levels.shares) == pytest.approx(0.4) and min(levels.shares) > 0.3
    # The same length by slices: of the lower part only what reaches above the fixed volume's lower end.
    upper, lower = kept(fixed, levels.fixed), kept(moving, levels.moving)
    bottom = upper.GetOrigin()[2] + levels.offset
    top = lower.TransformIndexToPhysicalPoint((0, 0, lower.GetSize()[2] - 1))[2]
    common = levels.common[1] - levels.common[0]
    assert top - bottom == pytest.approx(common, abs=2 * SPACING_Z)
    middle = upper.TransformIndexToPhysicalPoint((3, 4, 0))
    index = fixed.TransformPhysicalPointToIndex(middle)
    assert middle == pytest.approx(fixed.TransformIndexToPhysicalPoint(index))


def test_what_cannot_be_cut_is_refused() -> None:
    image, labels = body(0, (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="share no organ"):
        cut_levels((image, image), (labels, labels), (9,))
    below = sitk.Image(image)
    below.SetOrigin((0.0, 0.0, 500.0))
    with pytest.raises(ValueError, match="ends above"):
        cut_levels((image, below), (labels, labels), (1,))
    tilted = sitk.Image(image)
    tilted.SetDirection((1, 0, 0, 0, 0.8, -0.6, 0, 0.6, 0.8))
    with pytest.raises(ValueError, match="axes along"):
        body_heights(tilted)


def test_a_turned_pair_is_judged_with_its_turned_labels(tmp_path: Path) -> None:
    turn = Turn(-45.0, (5.0, 6.0, 7.0))
    pair = written_pair(tmp_path, turn)
    ready = pair.prepared(tmp_path / "inputs")
    assert ready.judged_volumes == (pair.fixed, ready.moving) and ready.moving != pair.moving
    truth = AffineTransform(turn.matrix(sitk.ReadImage(str(pair.moving))) @ TO_MOVING)
    assert ready.label_maps is not None
    fixed = read_labels(ready.label_maps[0])
    field = displacement_on(truth, fixed.grid)
    warped = field.warp(read_labels(ready.label_maps[1], read_image(ready.moving)), default=0)
    distances = center_distance_per_label(
        fixed.data.numpy(), warped.data.round().numpy(), list(ORGANS), fixed.grid
    )
    assert max(distances.values()) < 1.0


def test_organs_that_were_cut_away_are_judged_through_the_transform(tmp_path: Path) -> None:
    pair = written_pair(tmp_path, Cut(tuple(ORGANS)))
    ready = pair.prepared(tmp_path / "inputs")
    assert ready.judged_volumes == (pair.fixed, pair.moving)
    whole, cut = (Grid.from_sitk(sitk.ReadImage(str(path))) for path in (pair.fixed, ready.fixed))
    first = whole.to_world(np.array([7.0, 5.0, 32.0]))
    assert whole.contains(first[None]).all() and not cut.contains(first[None]).any()
    scores = {(s.metric, s.label): s.value for s in judged(ready, TO_MOVING, whole)}
    assert [scores["center_mm", f"organ {organ}"] for organ in ORGANS] == pytest.approx([0, 0, 0], abs=1e-3)
    off = TO_MOVING.copy()
    off[0, 3] += 8.0
    scores = {(s.metric, s.label): s.value for s in judged(ready, off, whole)}
    assert scores["center_mm", "organ 1"] == pytest.approx(8.0, abs=0.1)


def test_prepared_volumes_are_written_once(tmp_path: Path) -> None:
    pair = written_pair(tmp_path, Turn(45.0, (0.0, 0.0, 0.0)))
    first = pair.prepared(tmp_path / "inputs").moving
    written = first.stat().st_mtime_ns
    assert pair.prepared(tmp_path / "inputs").moving.stat().st_mtime_ns == written
    assert not list((tmp_path / "inputs").glob("part*"))


def test_starts_are_read_from_a_suite() -> None:
    assert hard_start({"turn": -45.0, "shift": [1, 2, 3]}) == Turn(-45.0, (1, 2, 3))
    assert hard_start({"cut": [1, 3]}) == Cut((1, 3))


@pytest.mark.data
def test_every_pair_between_subjects_has_three_hard_starts_with_less_than_half_in_common(data_dir: Path) -> None:
    pairs = load_suite("hard_starts", data_dir).pairs()
    assert len(pairs) == 60 and len({pair.name for pair in pairs}) == 60
    for degrees in (45, 90):
        turns = [p.preparation for p in pairs if p.family == f"starts_turned_{degrees}"]
        assert len(turns) == 20
        assert {abs(turn.degrees) for turn in turns if isinstance(turn, Turn)} == {degrees}
    for pair in [pair for pair in pairs if isinstance(pair.preparation, Cut)][:3]:
        assert pair.label_maps is not None and isinstance(pair.preparation, Cut)
        volumes = sitk.ReadImage(str(pair.fixed)), sitk.ReadImage(str(pair.moving))
        labels = tuple(sitk.ReadImage(str(path)) for path in pair.label_maps)
        shares = cut_levels(volumes, (labels[0], labels[1]), pair.preparation.organs).shares
        assert min(shares) > 0.25 and max(shares) < 0.5
