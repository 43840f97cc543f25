"""Linear alignment by intensities: known displacements of a made-up body, doubts and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from head_phantom import body_error, head_grid, head_phantom, rotation

from SAMRegistrationLib.alignment import Alignment, align, improved_on_same_body
from SAMRegistrationLib.alignment.checks import doubts
from SAMRegistrationLib.alignment.intensity_alignment import IntensityAligner
from SAMRegistrationLib.alignment.search import search_translations
from SAMRegistrationLib.alignment.volumes import CoarseVolume, PreparedImage
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.methods import align as stage
from SAMRegistrationLib.methods.problem import Problem
from SAMRegistrationLib.transforms import AffineTransform


@pytest.mark.slow
@pytest.mark.parametrize("contrast", [False, True])
def test_intensities_find_a_far_and_turned_volume_of_the_same_or_another_contrast(contrast: bool) -> None:
    truth = AffineTransform.about_center(rotation((8, -6, 15)), (0, 0, 0), (400, -300, 900))
    fixed = head_phantom(head_grid(), AffineTransform())
    moving = head_phantom(head_grid((400, -300, 900)), truth.inverse(), contrast)
    found = align(fixed, moving, model="rigid")
    assert found.method == "intensities"
    assert found.model == "rigid"
    assert body_error(found.transform, truth) < 3.0


@pytest.mark.slow
def test_intensities_find_half_a_body_and_the_storage_does_not_matter() -> None:
    truth = AffineTransform.translation((30, -20, 140))
    fixed = head_phantom(head_grid(), AffineTransform())
    moving = head_phantom(head_grid((30, -20, 190), (44, 36, 27)), truth.inverse())
    found = align(fixed, moving, model="rigid")
    assert body_error(found.transform, truth) < 5.0
    grid = moving.grid
    last = grid.to_world((0, 0, grid.size[2] - 1))
    stored = Image(
        moving.data.flip(0).transpose(1, 2).contiguous(),
        Grid(
            (grid.size[1], grid.size[0], grid.size[2]),
            grid.spacing,
            tuple(last),
            (0, 1, 0, 1, 0, 0, 0, 0, -1),
        ),
        "int16",
        "CT",
    )
    again = align(fixed, stored, model="rigid")
    assert body_error(again.transform, found.transform) < 0.1


def test_an_initial_map_is_improved() -> None:
    truth = AffineTransform.translation((12, -9, 6))
    fixed, moving = head_phantom(head_grid(), AffineTransform()), head_phantom(head_grid(), truth.inverse())
    found = align(fixed, moving, model="translation", initial=AffineTransform.translation((4, 0, 0)))
    assert body_error(found.transform, truth) < 1.5


def test_intensities_improve_a_map_by_features_where_both_volumes_show_one_body_only() -> None:
    truth = AffineTransform.translation((9, -6, 7))
    fixed, moving = head_phantom(head_grid(), AffineTransform()), head_phantom(head_grid(), truth.inverse())
    found = Alignment(AffineTransform.translation((3, -1, 1)), "rigid", 60, 0.95, "features", [], True)
    better = improved_on_same_body(found, fixed, moving)
    assert body_error(better.transform, truth) < 1.5 and better.method == "features"
    for other in (replace(found, score=0.8), replace(found, method="intensities")):
        assert improved_on_same_body(other, fixed, moving) is other
    apart = head_phantom(head_grid(), AffineTransform.translation((0, 0, 60)), contrast=True)
    assert improved_on_same_body(found, fixed, apart) is found, "what was said to look alike does not"


@pytest.mark.parametrize(
    ("score", "slices", "looks"), [(0.95, 54, 0), (0.7, 54, 1), (0.95, 18, 1)], ids=["whole", "people", "half"]
)
def test_one_body_of_which_both_volumes_show_as_much_is_looked_at_once(
    score: float, slices: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intensities say more exactly there what another embedding would."""
    truth = AffineTransform.translation((9, -6, 7))
    fixed = head_phantom(head_grid(), AffineTransform())
    moving = head_phantom(head_grid(size=(44, 36, slices)), truth.inverse())
    first = Alignment(AffineTransform.translation((3, -1, 1)), "rigid", 60, score, "features", [], True)
    looked_at: list[Alignment] = []

    def look_again(*_: object, **__: object) -> Alignment:
        looked_at.append(first)
        return first

    monkeypatch.setattr(stage, "sam_affine", lambda *_, **__: first)
    monkeypatch.setattr(stage, "look_again", look_again)
    problem = Problem(fixed, moving, MindExtractor())
    monkeypatch.setattr(problem.extractor, "name", "embeddings")
    stage.align_stage(problem, None, model="rigid")
    assert len(looked_at) == looks
    if looks == 0:
        assert body_error(problem.initial, truth) < 1.5


def test_every_translation_is_searched() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(14, 12, 10, generator=generator)
    everywhere = torch.ones_like(volume, dtype=torch.bool)

    def coarse(part: torch.Tensor, first: tuple[int, int, int]) -> CoarseVolume:
        known = everywhere[: part.shape[0], : part.shape[1], : part.shape[2]]
        grid = Grid(tuple(part.shape[::-1]), (8.0, 8.0, 8.0), tuple(8.0 * i for i in first))
        return CoarseVolume(part, known, known, known, grid, True)

    fixed = coarse(volume, (0, 0, 0))
    moving = coarse(volume[6:, :8, 2:], (100, 50, -70))
    best = search_translations(fixed, moving, [np.eye(3)])[0]
    # Voxel (2, 0, 6) of the fixed volume is the first one of the moving volume.
    np.testing.assert_allclose(best.transform.transform_points((16.0, 0.0, 48.0)), (800, 400, -560), atol=1e-6)
    assert best.overlap == pytest.approx(1)
    assert best.score == pytest.approx(1, abs=1e-3)


def test_an_unknown_model_is_refused() -> None:
    image = head_phantom(head_grid(), AffineTransform())
    with pytest.raises(ValueError, match="perspective"):
        align(image, image, model="perspective")


def test_doubts_are_told_and_volumes_without_overlap_are_refused() -> None:
    grid = head_grid()
    prepared = [PreparedImage.of(head_phantom(grid, AffineTransform())) for _ in range(2)]
    aligner = IntensityAligner(*prepared)
    assert doubts(aligner.judged(AffineTransform()), aligner, None) == []
    stretched = aligner.judged(AffineTransform.about_center(np.diag([1.3, 1, 1]), (0, 0, 0)))
    assert any("stretches" in sentence for sentence in doubts(stretched, aligner, None))
    shifted = aligner.judged(AffineTransform.translation((70, 40, 60)))
    assert any("little alike" in sentence for sentence in doubts(shifted, aligner, None))
    with pytest.raises(InputError, match="overlap"):
        doubts(aligner.judged(AffineTransform.translation((900, 0, 0))), aligner, None)
