"""Correspondences that the model finds itself: how they are found, stored, drawn and learned from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import centered_grid, phantom_pair

from SAMRegistrationLib import Image
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.training.batches import BatchSource
from SAMRegistrationLib.training.cache import CachedVolume, build_cache
from SAMRegistrationLib.training.config import LossConfig, TrainingConfig, ViewConfig
from SAMRegistrationLib.training.correspondence_loss import contrast_correspondences
from SAMRegistrationLib.training.embedding_samples import EmbeddedView, draw_places
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.training.pair_search import draw_pairs, find_pseudo_pairs, search_pair
from SAMRegistrationLib.training.pseudo_pairs import (
    LATTICE_MM,
    PseudoPair,
    lattice_shape,
    pair_file_name,
    read_pseudo_pair,
    read_pseudo_pairs,
    write_pseudo_pair,
)
from SAMRegistrationLib.training.trainer import Trainer
from SAMRegistrationLib.training.views import Source, View, cut_view, draw_placements
from SAMRegistrationLib.training.weights import extractor_of
from Testing.test_training import run_command, train_arguments
from Testing.training_volumes import tiny_configuration, write_manifest

SPACING = 2.0
OFFSET = (10.0, -6.0, 12.0)
CONFIG = LossConfig(
    queries=16,
    pool=60,
    hard_negatives=9,
    random_negatives=20,
    organ_targets=4,
    mined_negatives=3,
    temperature=0.05,
    correspondence_radius=10.0,
    coarse_radius=16.0,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def cached(folder: Path, name: str, image: Image) -> CachedVolume:
    """A volume of the cache, its body being all that is not air."""
    values = image.data.numpy().astype(np.int16)
    np.save(folder / f"{name}.npy", values)
    np.save(folder / f"{name}_labels.npy", (values > -600).astype(np.uint8))
    return CachedVolume(name, "trunk", name, str(folder), SPACING, {})


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Two cached bodies and the true map between their frames."""
    folder = tmp_path_factory.mktemp("phantoms")
    grids = centered_grid(SPACING), centered_grid(SPACING, center=OFFSET)
    pair = phantom_pair(offset=OFFSET, fixed_grid=grids[0], moving_grid=grids[1])

    def truth(places: np.ndarray) -> np.ndarray:
        return pair.truth(places + np.array(grids[0].origin)) - np.array(grids[1].origin)

    return folder, cached(folder, "a", pair.fixed), cached(folder, "b", pair.moving), truth, pair.moving


def lattice_places(pair: PseudoPair) -> np.ndarray:
    """(z, y, x, 3) in mm."""
    indices = np.moveaxis(np.indices(pair.agrees.shape), 0, -1)
    return indices[..., ::-1] * LATTICE_MM


@pytest.mark.slow
def test_what_is_kept_of_a_known_deformation_is_right_to_about_a_voxel(phantoms):
    _, fixed, moving, truth, _ = phantoms
    pair, sentence = search_pair(fixed, moving, extractor_of("sam", None, "cpu"))
    assert not pair.is_rejected and "kept" in sentence
    places = lattice_places(pair)
    found = places + np.moveaxis(pair.displacement.float().numpy(), 0, -1)
    errors = np.linalg.norm(found - truth(places), axis=-1)[pair.agrees.numpy()]
    assert len(errors) > 100
    assert np.median(errors) < SPACING and np.quantile(errors, 0.95) < 2 * SPACING


@pytest.mark.slow
def test_what_only_one_body_shows_is_not_kept(phantoms):
    """The upper third of the moving body is noise, which has no partner."""
    folder, fixed, _, truth, image = phantoms
    values = image.data.clone()
    top = values[48:]
    noise = torch.randn(top.shape, generator=torch.Generator().manual_seed(0)) * 120
    values[48:] = torch.where(top > -600, noise, top)
    moving = cached(folder, "altered", image.with_data(values))
    pair, _ = search_pair(fixed, moving, extractor_of("sam", None, "cpu"))
    assert not pair.is_rejected
    height = truth(lattice_places(pair))[..., 2] / SPACING
    body = torch.from_numpy(fixed.labels()[::4, ::4, ::4] > 0)
    agrees = pair.agrees[tuple(slice(0, n) for n in body.shape)]
    height = height[tuple(slice(0, n) for n in body.shape)]
    altered, intact = (agrees[body & torch.from_numpy(part)].float().mean() for part in (height > 52, height < 44))
    assert float(intact) > 0.4
    assert float(altered) < float(intact) / 2


@pytest.mark.slow
def test_bodies_that_have_nothing_in_common_are_rejected_and_not_tried_again(phantoms, tmp_path):
    folder, fixed, _, _, image = phantoms
    noise = torch.randn(image.data.shape, generator=torch.Generator().manual_seed(1)) * 200
    strange = cached(folder, "strange", image.with_data(torch.where(image.data.flip(0, 2) > -600, noise, -1000.0)))
    said: list[str] = []
    for _ in range(2):
        find_pseudo_pairs([(fixed, strange)], extractor_of("sam", None, "cpu"), tmp_path, say=said.append)
    assert "rejected" in said[0] and "there already" in said[1]
    assert read_pseudo_pair(tmp_path / pair_file_name("a", "strange")).is_rejected
    with pytest.raises(InputError, match="holds no pseudo-pairs"):
        read_pseudo_pairs(tmp_path, [fixed, strange])


def volume(name: str, region: str = "trunk", subject: str | None = None) -> CachedVolume:
    return CachedVolume(name, region, subject or name, "", SPACING, {})


def test_pairs_are_of_two_subjects_of_one_region_and_never_drawn_twice():
    volumes = [volume(f"t{index}", "trunk", f"s{index // 2}") for index in range(8)]
    volumes += [volume(f"l{index}", "limb") for index in range(4)] + [volume("alone", "other")]
    pairs = draw_pairs(volumes, 25, 3)
    assert len(pairs) == 25 and pairs == draw_pairs(volumes, 25, 3) != draw_pairs(volumes, 25, 4)
    assert len({frozenset((a.name, b.name)) for a, b in pairs}) == 25
    assert all(a.region == b.region and a.subject != b.subject for a, b in pairs)
    assert len(draw_pairs(volumes, 1000, 0)) == 24 + 6
    with pytest.raises(InputError, match="no two subjects"):
        draw_pairs(volumes[:2], 5, 0)


def shifted_pair(shape: tuple[int, int, int], shift: tuple[float, float, float], names: str = "ab") -> PseudoPair:
    """Every place of a cached volume of `shape` agrees, and lies `shift` mm farther in the other volume."""
    lattice = lattice_shape(shape, SPACING)
    displacement = torch.tensor(shift).half().view(3, 1, 1, 1).expand(3, *lattice).clone()
    return PseudoPair(names[0], names[1], SPACING, displacement, torch.ones(lattice, dtype=torch.bool))


def test_a_pair_survives_its_file_and_maps_only_what_agrees(tmp_path):
    pair = shifted_pair((20, 20, 20), (3.0, -2.0, 5.0))
    pair.agrees[:2] = False
    write_pseudo_pair(tmp_path, pair)
    again = read_pseudo_pair(tmp_path / "a__b.npz")
    assert (again.fixed, again.moving, again.spacing) == ("a", "b", SPACING)
    mapped, agrees = again.mapped(torch.tensor([[10.0, 10.0, 30.0], [10.0, 10.0, 4.0]]))
    torch.testing.assert_close(mapped, torch.tensor([[13.0, 8.0, 35.0], [13.0, 8.0, 9.0]]))
    assert agrees.tolist() == [True, False]
    first, second = again.draw_anchors(torch.Generator().manual_seed(0))
    assert first[2] >= 2 * LATTICE_MM
    torch.testing.assert_close(second - first, torch.tensor([3.0, -2.0, 5.0]))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "not a readable file"),
        (lambda path: np.savez(path, fixed="v0", moving="v2"), "not a readable file"),
        (lambda path: rewrite(path, spacing=3.0), "cache of 3 mm voxels, but this one has 2 mm"),
        (lambda path: rewrite(path, agrees=torch.ones(4, 4, 4, dtype=torch.bool)), "does not fit the size"),
        (lambda path: path.unlink(), "holds no pseudo-pairs"),
    ],
)
def test_unusable_files_are_refused_with_one_sentence(volumes, tmp_path, damage, sentence):
    write_pseudo_pair(tmp_path, pair_of(volumes))
    damage(tmp_path / "v0__v2.npz")
    with pytest.raises(InputError, match=sentence):
        read_pseudo_pairs(tmp_path, volumes)


def rewrite(path: Path, **changes) -> None:
    pair = replace(read_pseudo_pair(path), **changes)
    if "agrees" in changes:
        pair = replace(pair, displacement=torch.zeros(3, *pair.agrees.shape, dtype=torch.float16))
    write_pseudo_pair(path.parent, pair)


VIEW = (32, 32, 32)
SOURCE = (50, 50, 50)


def views(seed: int = 0) -> tuple[View, View]:
    codes = torch.ones((1, 1, *SOURCE), dtype=torch.uint8)
    source = Source(torch.zeros((1, 1, *SOURCE), dtype=torch.int16), codes, SPACING)
    config = ViewConfig(shape=VIEW, offset=2.0, far_probability=0.0, quarter_turn_probability=0.0)
    anchor = torch.full((3,), 50.0)
    first, second = draw_placements(source, config, torch.Generator().manual_seed(seed), anchor)
    return cut_view(source, first, VIEW), cut_view(source, second, VIEW)


def embedded(view: View, shift: float, seed: int, config: LossConfig = CONFIG) -> EmbeddedView:
    """Random Fourier features of the source position, as if the body lay `shift` mm farther along x."""
    generator = torch.Generator().manual_seed(7)
    waves = torch.randn((64, 3), generator=generator)
    waves *= 0.25 / waves.norm(dim=1, keepdim=True) * torch.rand((64, 1), generator=generator).sqrt()

    def encode(mesh: torch.Tensor) -> torch.Tensor:
        moved = mesh - torch.tensor([shift, 0.0, 0.0]).view(3, 1, 1, 1)
        phase = torch.einsum("kc,cdhw->kdhw", waves, moved)
        return torch.cat([phase.sin(), phase.cos()])

    fine = encode(view.mesh).requires_grad_()
    coarse = torch.nn.functional.avg_pool3d(encode(view.mesh)[None], 2)[0].requires_grad_()
    return EmbeddedView(
        view, fine, coarse, config, *draw_places([view], config, torch.Generator().manual_seed(seed))
    )


def test_vectors_that_follow_the_correspondence_have_almost_no_loss_and_others_do():
    first, second = (embedded(view, shift, 1) for view, shift in zip(views(), (0.0, 6.0), strict=True))
    right = contrast_correspondences(first, second, shifted_pair(SOURCE, (6.0, 0.0, 0.0)), CONFIG)
    wrong = contrast_correspondences(first, second, shifted_pair(SOURCE, (-14.0, 0.0, 0.0)), CONFIG)
    assert max(float(loss.detach()) for loss in right) < 0.1
    assert min(float(loss.detach()) for loss in wrong) > 5.0


def test_a_correspondence_wrong_by_less_than_its_sigma_costs_little():
    config = replace(CONFIG, mined_negatives=0)
    first, second = (embedded(view, shift, 1) for view, shift in zip(views(), (0.0, 6.0), strict=True))
    near = shifted_pair(SOURCE, (16.0, 0.0, 0.0))
    tolerant, strict = (
        contrast_correspondences(first, second, near, replace(config, correspondence_sigma=sigma))[0].detach()
        for sigma in (10.0, 0.01)
    )
    assert float(tolerant) < float(strict)


def test_equal_vectors_everywhere_cost_the_log_of_the_number_of_places_compared():
    config = replace(CONFIG, correspondence_radius=-1.0, coarse_radius=-1.0, mined_negatives=0)
    maps = torch.ones(4, 16, 16, 16), torch.ones(4, 8, 8, 8)
    pair = [
        EmbeddedView(view, *maps, config, *draw_places([view], config, torch.Generator().manual_seed(2)))
        for view in views()
    ]
    losses = contrast_correspondences(pair[0], pair[1], shifted_pair(SOURCE, (0.0, 0.0, 0.0)), config)
    compared = 1 + config.hard_negatives + config.pool // (config.pool // config.random_negatives)
    for loss in losses:
        assert float(loss) == pytest.approx(math.log(compared), abs=1e-4)


def test_gradients_reach_the_maps_of_both_subjects():
    first, second = (embedded(view, 3.0 * index, index) for index, view in enumerate(views()))
    fine, coarse = contrast_correspondences(first, second, shifted_pair(SOURCE, (0.0, 0.0, 0.0)), CONFIG)
    for view in (first, second):
        for rows, loss in ((view.fine_rows, fine), (view.coarse_rows, coarse)):
            assert float(torch.autograd.grad(loss, rows, retain_graph=True)[0].abs().sum()) > 0


def test_views_without_common_places_give_no_loss():
    first, second = (embedded(view, 0.0, 1) for view in views())
    assert contrast_correspondences(first, second, shifted_pair(SOURCE, (500.0, 0.0, 0.0)), CONFIG) is None


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def volumes(manifest, tmp_path_factory) -> list[CachedVolume]:
    return build_cache(read_manifest(manifest), tmp_path_factory.mktemp("cache"), SPACING).volumes


def pair_of(volumes: list[CachedVolume]) -> PseudoPair:
    """v0 and v2, the two subjects of one region."""
    pair = shifted_pair(volumes[0].image().shape, (4.0, 0.0, -6.0))
    return replace(pair, fixed="v0", moving="v2")


def test_the_views_of_a_listed_pair_lie_around_corresponding_places(volumes, tmp_path):
    write_pseudo_pair(tmp_path, pair_of(volumes))
    settings = tiny_configuration(pseudo_pair_probability=1.0)
    settings["views"] |= {"offset": 0.0, "elastic": 0.0}
    pairs = read_pseudo_pairs(tmp_path, volumes)
    config = TrainingConfig.from_dict(settings)
    source = BatchSource(volumes, config, torch.device("cpu"), pseudo_pairs=pairs)
    listed = 0
    for iteration in range(12):
        batch = source.draw(source.generator(iteration))
        if not batch.pseudo_pairs:
            assert set(batch.names) == {"v1", "v3"}
            continue
        listed += 1
        assert batch.names == ["v0", "v2"]
        centers = [view.mesh.mean(dim=(1, 2, 3)) for pair in batch.views for view in pair]
        for first, second in ((0, 2), (1, 3)):
            torch.testing.assert_close(
                centers[second] - centers[first], torch.tensor([4.0, 0.0, -6.0]), atol=0.05, rtol=0
            )
    assert 0 < listed < 12


@pytest.mark.slow
def test_training_with_pseudo_pairs_follows_from_its_seed_and_resumes(volumes, tmp_path):
    write_pseudo_pair(tmp_path, pair_of(volumes))

    def trainer(name: str, **changes) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        config = TrainingConfig.from_dict(tiny_configuration(pseudo_pair_probability=1.0, **changes))
        pairs = read_pseudo_pairs(tmp_path, volumes)
        return Trainer(volumes, config, tmp_path / name, pseudo_pairs=pairs, quiet=True)

    losses = trainer("first").run()
    assert losses == trainer("second").run()
    unweighted = tiny_configuration()["loss"] | {"correspondence_weight": 0.0}
    assert losses != trainer("without", loss=unweighted).run()

    trainer("parts", iterations=2, decay=0.0).run()
    whole = trainer("whole", decay=0.0).run()
    resumed = trainer("parts", decay=0.0)
    assert resumed.resume() and resumed.run() == whole[2:]


def test_the_commands_find_pairs_and_train_with_them(manifest, tmp_path, capsys):
    held_out = tmp_path / "split.json"
    held_out.write_text(json.dumps({"validation": ["v3"]}))
    cache, found = tmp_path / "cache", tmp_path / "pairs"
    options = ["--held-out", str(held_out), "--cache", str(cache), "--device", "cpu"]
    search = ["train", "pairs", "--data", str(manifest), "--out", str(found), *options, "--preset", "affine"]
    with pytest.raises(UsageError, match="--part wants I/N"):
        run_command([*search, "--part", "3/2"])
    assert run_command([*search, "--count", "1", "--part", "1/1"]) == 0
    said = capsys.readouterr().out
    assert "v3" not in said and "1/1 v" in said

    write_pseudo_pair(found, replace(pair_of(build_cache(read_manifest(manifest), cache, SPACING).volumes)))
    training = train_arguments(manifest, tmp_path / "out", tiny_configuration(iterations=1), *options)
    assert run_command([*training, "--pseudo-pairs", str(found)]) == 0
    assert json.loads((tmp_path / "out" / "model_card.json").read_text())["pseudo_pairs"] >= 1
    with pytest.raises(InputError, match="holds no pseudo-pairs"):
        run_command([*training, "--pseudo-pairs", str(tmp_path)])
