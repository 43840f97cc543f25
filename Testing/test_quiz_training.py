"""Training of the query point network: views, pairs, losses, runs and the command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_volumes import write_manifest

from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.networks.quiz import Answers
from SAMRegistrationLib.sampling import sample_points
from SAMRegistrationLib.training import loop, quiz_trainer
from SAMRegistrationLib.training.cache import CachedVolume, build_cache
from SAMRegistrationLib.training.checkpoint import CHECKPOINT_FILE, WEIGHTS_FILE
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.training.quiz_command import add_quiz_arguments, run_quiz
from SAMRegistrationLib.training.quiz_config import RECIPES, QuizLossConfig, QuizPairConfig, QuizTrainingConfig
from SAMRegistrationLib.training.quiz_losses import (
    confidence_loss,
    normalized_correlation,
    offset_loss,
    pointing_loss,
    quiz_loss,
    translation_loss,
)
from SAMRegistrationLib.training.quiz_pairs import QuizPair, QuizPairs, _turned
from SAMRegistrationLib.training.quiz_trainer import QuizTrainer
from SAMRegistrationLib.training.quiz_views import QuizViewConfig, prepare_views, read_view, view_file

VIEWS = 3
TINY: dict[str, Any] = {
    "network": {"channels": 16, "widths": [8, 8, 16, 16], "layers": 2, "heads": 2},
    "iterations": 4,
    "mixed_precision": False,
    "views": {"crop_probability": [0.0, 0.0], "most_voxels": 200000, "elastic": 2.0},
    "pairs": {"image_size": 16, "queries": 20},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("volumes"), 3)


@pytest.fixture(scope="module")
def volumes(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedVolume]:
    return build_cache(read_manifest(manifest), tmp_path_factory.mktemp("cache"), 2.0).volumes


@pytest.fixture(scope="module")
def views(volumes: list[CachedVolume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    config = RECIPES["published"].changed(TINY).views
    assert list(prepare_views(volumes, folder, None, VIEWS, 1, config))[-1] == (9, 9)
    return folder


def pairs_of(volumes: list[CachedVolume], views: Path, **changes: Any) -> QuizPairs:
    config = replace(QuizPairConfig(image_size=16, queries=20, turns=False), **changes)
    return QuizPairs(volumes, views, VIEWS, config, with_embedding=False)


def test_places_found_in_two_views_look_alike(volumes: list[CachedVolume], views: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for volume in volumes:
        first, second = (read_view(views / view_file(volume, n), volume) for n in (0, 1))
        assert first is not None and second is not None
        positions, places = first.draw_places(300, generator)
        partners, shown = second.find(places)
        assert shown.float().mean() > 0.2
        values = []
        for view, where in ((first, positions), (second, partners)):
            voxel = torch.from_numpy(view.volume.image.grid.to_voxel(where.numpy()))
            values.append(sample_points(view.volume.image.tensor().double(), voxel)[:, 0][shown])
        # Organs are 200 HU apart; noise, contrast and masks of either view are others.
        assert np.corrcoef(values[0].numpy(), values[1].numpy())[0, 1] > 0.4


def test_a_view_finds_its_own_places_where_they_are(volumes: list[CachedVolume], views: Path) -> None:
    view = read_view(views / view_file(volumes[0], 0), volumes[0])
    assert view is not None
    positions, places = view.draw_places(200, torch.Generator().manual_seed(1))
    found, shown = view.find(places)
    assert shown.float().mean() > 0.8
    torch.testing.assert_close(found[shown], positions[shown], rtol=0, atol=0.5)


def test_views_are_made_once_and_the_same_for_one_seed(volumes: list[CachedVolume], tmp_path: Path) -> None:
    config = RECIPES["published"].changed(TINY).views
    list(prepare_views(volumes[:1], tmp_path, None, 1, 5, config))
    file = tmp_path / view_file(volumes[0], 0)
    before, written = dict(np.load(file)), file.stat().st_mtime_ns
    list(prepare_views(volumes[:1], tmp_path, None, 1, 5, config))
    assert file.stat().st_mtime_ns == written
    file.unlink()
    list(prepare_views(volumes[:1], tmp_path, None, 1, 5, config))
    for name, values in np.load(file).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_damaged_view_is_none(volumes: list[CachedVolume], tmp_path: Path) -> None:
    assert read_view(tmp_path / "nothing.npz", volumes[0]) is None
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    assert read_view(tmp_path / "bad.npz", volumes[0]) is None


def test_pairs_of_one_seed_are_equal_and_lie_in_their_cubes(volumes: list[CachedVolume], views: Path) -> None:
    source = pairs_of(volumes, views)
    first, again = (source.draw(2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.names == again.names and torch.equal(first.queries, again.queries)
    assert first.reference.shape == (2, 1, 16, 16, 16) and first.queries.shape == (2, 20, 3)
    assert float(first.reference.min()) >= 0 and float(first.reference.max()) <= 1
    assert first.queries.abs().max() < 1.5 and first.shown.any(dim=1).all()


def test_pairs_of_two_subjects_connect_the_centers_of_their_structures(
    volumes: list[CachedVolume], views: Path
) -> None:
    source = pairs_of(volumes, views, between_subjects=1.0, least_structures=2)
    pair = source.draw(1, torch.Generator().manual_seed(0))
    subjects = {name.rsplit("_", 1)[0] for name in pair.names}
    assert len(subjects) == 2 and pair.shown.all()
    assert 2 <= len(torch.unique(pair.queries[0], dim=0)) <= 3


def test_axes_are_permuted_and_flipped_of_volumes_and_points_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    size, asked = 6, torch.rand(1, 50, 3, generator=generator) - 0.5
    volume = torch.rand(1, 1, size, size, size, generator=generator)
    pair = QuizPair(["a", "b"], volume, volume.clone(), None, asked, asked.clone(), torch.ones(1, 50) > 0)

    def read(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return sample_points(values, (points[0] + 1) * size / 2 - 0.5)

    changed = 0
    for _ in range(20):
        turned = _turned(pair, 0.5, generator)
        torch.testing.assert_close(read(turned.reference, turned.queries), read(volume, asked))
        torch.testing.assert_close(read(turned.search, turned.targets), read(volume, asked))
        changed += not torch.equal(turned.queries, asked)
    assert changed > 10


def answers_to(pair: QuizPair, displacement: torch.Tensor, log_variance: float = 0.0) -> Answers:
    return Answers(displacement, torch.full(pair.shown.shape, log_variance), None)


@pytest.fixture
def pair() -> QuizPair:
    generator = torch.Generator().manual_seed(2)
    grid = torch.linspace(-1, 1, 24)
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    reference = torch.exp(-8 * (x**2 + y**2 + z**2))[None, None]
    search = torch.exp(-8 * ((x - 0.25) ** 2 + y**2 + z**2))[None, None]
    queries = torch.rand(1, 30, 3, generator=generator) - 0.5
    shown = torch.ones(1, 30, dtype=torch.bool)
    return QuizPair(["a", "b"], reference, search, None, queries, queries + torch.tensor([0.25, 0, 0]), shown)


def test_equation_2_is_the_mean_squared_distance(pair: QuizPair) -> None:
    total, parts = quiz_loss(answers_to(pair, torch.zeros(1, 30, 3)), pair, QuizLossConfig(), False)
    assert float(total) == pytest.approx(0.0625) and set(parts) == {"pair"}


def test_points_that_are_not_shown_do_not_pull(pair: QuizPair) -> None:
    shown = pair.shown.clone()
    shown[0, :10] = False
    displacement = pair.targets - pair.queries
    displacement[0, :10] = 9.0
    total, _ = quiz_loss(answers_to(pair, displacement), replace(pair, shown=shown), QuizLossConfig(), False)
    assert float(total) == pytest.approx(0.0, abs=1e-6)


def test_equations_3_to_5_are_least_at_the_true_shift(pair: QuizPair) -> None:
    losses = []
    for shift in (-0.1, 0.1, 0.2, 0.25, 0.3, 0.5):
        displacement = torch.zeros(1, 4, 3)
        # Only the mean counts.
        displacement[0, :, 0] = shift + torch.tensor([-0.2, 0.2, 0.1, -0.1])
        losses.append(float(translation_loss(pair.reference, pair.search, displacement)))
    assert int(np.argmin(losses)) == 3 and losses[3] < -0.9


def test_the_translation_loss_draws_the_mean_displacement_to_the_truth(pair: QuizPair) -> None:
    displacement = torch.zeros(1, 4, 3, requires_grad=True)
    translation_loss(pair.reference, pair.search, displacement).backward()
    assert displacement.grad is not None and (displacement.grad[..., 0] < 0).all()
    assert displacement.grad[..., 1:].abs().max() < 0.1 * displacement.grad[..., 0].abs().min()


def test_correlation_does_not_see_scale_and_offset() -> None:
    first, second = torch.rand(2, 1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    assert float(normalized_correlation(first, 3 * first + 2)) == pytest.approx(1.0, abs=0.01)
    assert float(normalized_correlation(first, 1 - first)) == pytest.approx(-1.0, abs=0.01)
    assert abs(float(normalized_correlation(first, second))) < 0.1


def test_the_best_variance_is_that_of_the_errors() -> None:
    residual = torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(0)).norm(dim=-1) * 0.1
    shown = torch.ones(1, 4000, dtype=torch.bool)
    candidates = np.log(np.array([0.05, 0.08, 0.1, 0.12, 0.2]) ** 2)
    losses = [float(confidence_loss(residual, torch.full((1, 4000), c), shown, 0.5)) for c in candidates.tolist()]
    assert int(np.argmin(losses)) == 2


def test_the_offset_is_that_of_the_mean_of_the_shown_points() -> None:
    error = torch.tensor([[[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0], [0.0, 9.0, 0.0]], [[0.0, 0.4, 0.0]] * 3])
    shown = torch.tensor([[True, True, False], [True, True, True]])
    assert float(offset_loss(error, shown)) == pytest.approx((0.0 + 0.4) / 2, abs=1e-3)


def test_distance_and_offset_join_the_published_square(pair: QuizPair) -> None:
    config = QuizLossConfig(distance=0.5, offset=2.0)
    total, parts = quiz_loss(answers_to(pair, torch.zeros(1, 30, 3)), pair, config, False)
    assert float(parts["distance"]) == pytest.approx(0.25) and float(parts["offset"]) == pytest.approx(0.25)
    assert float(total) == pytest.approx(0.0625 + 0.5 * 0.25 + 2 * 0.25)


def test_pointing_is_best_at_the_cell_of_the_target() -> None:
    targets = torch.tensor([[[0.25, -0.25, 0.75]]])
    losses = {}
    for cell in ((3, 1, 2), (3, 1, 1), (0, 0, 0)):
        pointing = torch.zeros(1, 1, 4, 4, 4)
        pointing[(0, 0, *cell)] = 1.0
        losses[cell] = float(pointing_loss(pointing, targets, torch.ones(1, 1, dtype=torch.bool)))
    assert losses[3, 1, 2] == pytest.approx(0.0) and min(losses, key=losses.__getitem__) == (3, 1, 2)


def trainer_for(volumes: list[CachedVolume], views: Path, out: Path, **changes: Any) -> QuizTrainer:
    out.mkdir(exist_ok=True)
    config: QuizTrainingConfig = RECIPES["published"].changed({**TINY, **changes})
    return QuizTrainer(QuizPairs(volumes, views, VIEWS, config.pairs, False), config, out, quiet=True)


def _interrupting(losses_of: Callable[[int], Any], after: int) -> Callable[[int], Any]:
    def interrupted(part: int) -> Any:
        if part == after:
            raise KeyboardInterrupt
        return losses_of(part)

    return interrupted


def test_an_interrupted_run_ends_like_one_that_was_not(
    volumes: list[CachedVolume], views: Path, tmp_path: Path
) -> None:
    whole = trainer_for(volumes, views, tmp_path / "whole")
    losses = whole.run()
    part = trainer_for(volumes, views, tmp_path / "part", checkpoint_minutes=0.0)
    part.losses_of = _interrupting(part.losses_of, 2)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        part.run()
    rest = trainer_for(volumes, views, tmp_path / "part")
    assert rest.resume() and rest.iteration == 2
    assert rest.run() == pytest.approx(losses[2:], rel=1e-4)
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(rest.average.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_a_run_of_so_many_minutes_ends_in_time(
    volumes: list[CachedVolume], views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PACE_FROM", 2)
    monkeypatch.setattr(loop, "PACE_EVERY", 3)
    lateness: list[bool] = []

    def noted(*given: Any) -> Any:
        lateness.append(given[-1])
        return quiz_loss(*given)

    monkeypatch.setattr(quiz_trainer, "quiz_loss", noted)
    trainer = trainer_for(volumes, views, tmp_path, iterations=1000, minutes=0.01)
    trainer.run()
    assert lateness[-1] and not lateness[0]
    assert trainer.iteration == trainer.settings.iterations < 100
    assert 0.3 < trainer.seconds < 3.0


def test_the_command_makes_views_trains_and_goes_on(manifest: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({**TINY, "iterations": 1}))
    arguments = ["quiz", "--data", str(manifest), "--out", str(tmp_path / "run"), "--recipe", "published"]
    arguments += ["--config", str(settings), "--views-per-volume", "2", "--device", "cpu", "--quiet"]
    assert run_quiz(parsed(arguments)) == 0
    assert len(list((tmp_path / "run" / "views").glob("*.npz"))) == 6
    assert load_file(tmp_path / "run" / WEIGHTS_FILE)["side"].dtype is torch.float16
    assert run_quiz(parsed([*arguments, "--iterations", "2"])) == 0
    state = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)
    assert state["iteration"] == 2


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_quiz_arguments(parser.add_subparsers())
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (["--views-per-volume", "1"], UsageError, "two views"),
        (["--config", "{}"], InputError, "cannot be read"),
        (["--data", "nothing.json"], InputError, "does not exist"),
    ],
)
def test_wrong_use_is_refused(
    manifest: Path, tmp_path: Path, changes: list[str], error: type[Exception], sentence: str
) -> None:
    arguments = ["quiz", "--data", str(manifest), "--out", str(tmp_path), "--quiet", "--device", "cpu", *changes]
    with pytest.raises(error, match=sentence):
        run_quiz(parsed(arguments))


def test_an_embedding_is_named_exactly_where_the_network_takes_one(manifest: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"embedding": "sam"}))
    arguments = ["quiz", "--data", str(manifest), "--out", str(tmp_path), "--recipe", "published", "--quiet"]
    with pytest.raises(UsageError, match="embedding_channels"):
        run_quiz(parsed([*arguments, "--config", str(settings)]))


def test_unknown_settings_are_refused(manifest: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"pairs": {"question": 3}}))
    arguments = ["quiz", "--data", str(manifest), "--out", str(tmp_path), "--quiet", "--config", str(settings)]
    with pytest.raises(UsageError, match="question"):
        run_quiz(parsed(arguments))


def test_a_folder_without_pairs_is_refused(volumes: list[CachedVolume], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no two views"):
        pairs_of(volumes, tmp_path)


def test_the_published_recipe_has_the_published_numbers() -> None:
    recipe = RECIPES["published"]
    assert (recipe.batch, recipe.iterations, recipe.learning_rate) == (2, 2000, 1e-4)
    assert (recipe.pairs.image_size, recipe.pairs.queries, recipe.loss.translation) == (128, 40, 0.01)
    assert recipe.pairs.change_probability == 0.2 and recipe.network == {} and recipe.embedding is None


def test_views_stay_below_the_most_voxels(volumes: list[CachedVolume], tmp_path: Path) -> None:
    config = QuizViewConfig(most_voxels=20000, elastic=1.0)
    list(prepare_views(volumes[:1], tmp_path, None, 1, 0, config))
    view = read_view(tmp_path / view_file(volumes[0], 0), volumes[0])
    assert view is not None
    # The stored image has half the resolution along each axis.
    assert view.volume.image.grid.number_of_voxels * 8 <= 20000
