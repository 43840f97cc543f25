"""Trained networks in registrations: installing, finding, running, and optimizing further."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import PhantomPair, phantom_pair
from safetensors.torch import save_file
from test_networks_published import published_lapirn
from torch import Tensor

from SAMRegistrationLib import AffineTransform, register
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.methods.instance_optimization import instance_optimization
from SAMRegistrationLib.methods.learned import learned
from SAMRegistrationLib.methods.problem import Problem, TrainedObjective, at_shape
from SAMRegistrationLib.models.catalogue import ModelEntry, find_model, install, verify
from SAMRegistrationLib.models.deformable import Normalization, embeddings_for, find_deformable, load_deformable
from SAMRegistrationLib.models.folders import USER_FOLDER_VARIABLE, user_folder
from SAMRegistrationLib.models.importer import import_checkpoint
from SAMRegistrationLib.networks.deformable import DEFORMABLE_NETWORKS, build_deformable_network
from SAMRegistrationLib.pipeline import prepare
from SAMRegistrationLib.presets import Stage, load_preset, preset_names, usable_preset_names
from SAMRegistrationLib.sampling import voxel_mesh
from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.terms import TrustTerm
from SAMRegistrationLib.training.deformable.losses import known_field_loss

LEARNED = [name for name in preset_names() if load_preset(name).networks]
SPACING = 4.0
NORMALIZATION = Normalization((-800.0, 400.0))
TINY = {"encoder": [8, 16, 16], "decoder": [16, 16, 16, 8]}
OPTIONS: dict[str, dict[str, Any]] = {
    "voxelmorph": TINY,
    "sam-voxelmorph": {"backbone": "u-net", "coarse_stride": [4, 4, 4], **TINY},
    "lapirn": {"width": 4},
    "rwcnet": {"steps": [2, 2, 1], "radii": [1, 1, 1], "features": 4, "hidden": 8, "filters": 4},
}
LOSSES = {"lncc": 1.0, "radius": 3, "diffusion": 0.2, "sam": 1.0, "coarse_share": 0.5}


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER_FOLDER_VARIABLE, str(tmp_path / "models"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    """Displacements of at most 5 mm, little more than a voxel of the network."""
    return phantom_pair(4.0, offset=(0.0, 0.0, 0.0), angles=(0.0, 0.0, 0.0))


def problem_of(pair: PhantomPair) -> Problem:
    return prepare(MindExtractor(2.0), (pair.fixed, pair.moving), 2.0, torch.device("cpu"))


def small_shape(problem: Problem) -> tuple[int, ...]:
    return tuple(n // 2 for n in problem.grid.shape)


@pytest.fixture(scope="module")
def trained(pair: PhantomPair) -> dict[str, Tensor]:
    """The weights of a small VoxelMorph that knows this one pair by heart."""
    problem = problem_of(pair)
    shape = small_shape(problem)
    fixed, moving = (NORMALIZATION(at_shape(volume, shape)) for volume in problem.volumes())
    grid = problem.grid.resized(shape[::-1])
    world = voxel_mesh(grid.shape, grid.voxel_to_world).flatten(1).T.double().numpy()
    known = torch.from_numpy((pair.truth(world) - world) / SPACING).float().T.reshape(1, 3, *shape)
    torch.manual_seed(0)
    network = build_deformable_network("voxelmorph", TINY)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        known_field_loss(network(fixed, moving)[-1], known, (fixed > -0.6).float()).backward()
        optimizer.step()
    return network.state_dict()


def entry_of(network: str, name: str, options: dict[str, Any], features: str | None = None) -> ModelEntry:
    configuration = {"network": options, "window": [-800, 400], "features": features, "losses": LOSSES}
    return ModelEntry(
        name, network, f"{name}.safetensors", "", SPACING, "a phantom", "none", "2026-11-22", {}, configuration,
        user_folder(),
    )  # fmt: skip


def install_random(network: str, features: str | None = None) -> ModelEntry:
    """Weights as a training begins with: nearly no displacement."""
    torch.manual_seed(0)
    options = OPTIONS[network]
    return install(
        entry_of(network, f"my-{network}", options, features),
        build_deformable_network(network, options).state_dict(),
    )


# Running


@pytest.mark.slow
def test_a_network_that_knows_a_pair_registers_it_and_optimization_does_not_undo_that(
    pair: PhantomPair, trained: dict[str, Tensor]
):
    install(entry_of("voxelmorph", "by-heart", TINY), trained)
    found = {
        name: register(pair.fixed, pair.moving, preset=name, model="mind", initial=AffineTransform())
        for name in ("voxelmorph", "voxelmorph-io")
    }
    errors = {name: pair.error(result.transform.transform_points).mean() for name, result in found.items()}
    assert pair.error(lambda points: points).mean() > 3.0
    assert errors["voxelmorph"] < 1.0
    assert errors["voxelmorph-io"] < errors["voxelmorph"] + 0.1
    report = found["voxelmorph-io"].report
    assert report["details"]["learned"]["model"] == "by-heart"
    assert report["field"]["folded_percent"] == 0
    optimized = report["details"]["instance_optimization"][0]
    assert optimized["loss_after"] <= optimized["loss_before"]


@pytest.mark.slow
def test_optimization_on_other_features_undoes_what_the_network_knows(
    pair: PhantomPair, trained: dict[str, Tensor]
):
    """The finding of the thesis on RWCNet where displacements are small, and what the presets do about it."""
    install(entry_of("voxelmorph", "by-heart", TINY), trained)
    settings = next(s.settings for s in load_preset("voxelmorph-io").stages if s.name == "instance_optimization")
    plain = {**settings, "as_trained": False, "trust": 0.0, "feature_weight": 12.0, "diffusion": 1.25}
    errors = {}
    for name, chosen in {"network": None, "as trained": settings, "mind": plain}.items():
        problem = problem_of(pair)
        problem.displacement = learned(problem, network="voxelmorph")
        if chosen is not None:
            problem.displacement = instance_optimization(problem, **chosen)
        errors[name] = pair.error(problem.transform().transform_points).mean()
    assert errors["mind"] > 1.5 * errors["network"]
    assert errors["as trained"] < 1.1 * errors["network"]


@pytest.mark.slow
def test_optimization_as_trained_leaves_a_field_that_is_wrong_by_voxels(pair: PhantomPair):
    """Trust ends where the volumes speak clearly."""
    problem = problem_of(pair)
    wrong = torch.tensor([1.5, -1.5, 1.0]).view(1, 3, 1, 1, 1)
    problem.displacement = wrong.expand(1, 3, *small_shape(problem)).clone()
    problem.trained = TrainedObjective({"lncc": 1.0, "radius": 3, "diffusion": 0.2}, NORMALIZATION)
    before = pair.error(problem.transform().transform_points).mean()
    settings = next(s.settings for s in load_preset("voxelmorph-io").stages if s.name == "instance_optimization")
    problem.displacement = instance_optimization(problem, **settings)
    assert pair.error(problem.transform().transform_points).mean() < 0.5 * before


@pytest.mark.slow
@pytest.mark.parametrize("preset", LEARNED)
def test_every_preset_of_a_network_runs_from_end_to_end(preset: str, pair: PhantomPair):
    """With fresh weights, and without embeddings where those are a choice."""
    network = load_preset(preset).networks.pop()
    options = {**OPTIONS[network]}
    if network == "sam-voxelmorph":
        options |= {"fine_correlation": False, "coarse_correlation": False}
    torch.manual_seed(0)
    weights = build_deformable_network(network, options).state_dict()
    install(entry_of(network, "fresh", options), weights)
    model = None if preset == "lapirn" else "mind"
    stages = [{"method": stage.name, **stage.settings} for stage in load_preset(preset).stages]
    for stage in stages:
        if stage["method"] == "learned":
            stage["model"] = "fresh"
        if stage["method"] == "instance_optimization":
            stage["iterations"] = 10
    chosen = replace(
        load_preset(preset),
        stages=tuple(Stage(stage.pop("method"), stage) for stage in stages),
    )
    found = register(pair.fixed, pair.moving, preset=chosen, model=model, initial=AffineTransform())
    assert found.report["preset"] == preset and found.report["details"]["learned"]["model"] == "fresh"
    assert found.report["field"]["folded_percent"] <= 0.1
    assert torch.isfinite(found.displacement.data).all()


@pytest.mark.parametrize("network", [name for name in OPTIONS if name in DEFORMABLE_NETWORKS])
@pytest.mark.parametrize("size", [(21, 30, 17)])
def test_every_network_runs_on_any_size_and_spacing(network: str, size: tuple[int, int, int], pair: PhantomPair):
    features = "sam-lite" if network == "sam-voxelmorph" else None
    install_random(network, features)
    grid = pair.fixed.grid.resized(size)
    extractor = get_extractor("sam") if features else MindExtractor(2.0)
    problem = prepare(extractor, (pair.fixed.resampled(grid), pair.moving), 2.0, torch.device("cpu"))
    found = learned(problem, network=network)
    assert tuple(found.shape[2:]) == small_shape(problem)
    assert bool(torch.isfinite(found).all())


def test_the_field_is_scaled_from_the_networks_voxels_to_millimeters(
    pair: PhantomPair, monkeypatch: pytest.MonkeyPatch
):
    """A network that says (1, 2, 3) voxels of 4 mm moves every point by (4, 8, 12) mm, after any displacement."""
    install_random("voxelmorph")
    problem = problem_of(pair)
    shift = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    network = DEFORMABLE_NETWORKS["voxelmorph"]
    monkeypatch.setattr(network, "forward", lambda _, fixed, *__: [shift.expand(1, 3, *fixed.shape[2:])])
    for expected in (1, 2, 3):
        problem.displacement = learned(problem, network="voxelmorph")
        moved = problem.transform().transform_points(np.zeros((1, 3)))
        np.testing.assert_allclose(moved[0], np.array([4.0, 8.0, 12.0]) * expected, atol=1e-3)
    twice = learned(problem_of(pair), network="voxelmorph", passes=2)
    torch.testing.assert_close(twice[0, :, 16, 16, 16], 2 * shift.flatten(), atol=1e-3, rtol=0)


def test_a_network_gets_unit_vectors_on_the_grids_of_its_strides():
    network = build_deformable_network("sam-voxelmorph", OPTIONS["sam-voxelmorph"])
    maps = torch.randn(1, 5, 8, 12, 16), torch.randn(1, 5, 2, 3, 4)
    fine, coarse = embeddings_for(network, (8, 12, 16), maps)
    assert tuple(fine.shape[2:]) == (4, 6, 8) and tuple(coarse.shape[2:]) == (2, 3, 4)
    torch.testing.assert_close(fine.norm(dim=1), torch.ones(1, 4, 6, 8))
    direct = torch.nn.functional.avg_pool3d(maps[0], 2)
    torch.testing.assert_close(fine, torch.nn.functional.normalize(direct, dim=1))


def test_features_that_the_network_was_not_trained_with_are_refused(pair: PhantomPair):
    install_random("sam-voxelmorph", "sam-lite")
    with pytest.raises(InputError, match="embeddings of sam-lite and cannot read those of mind"):
        learned(problem_of(pair), network="sam-voxelmorph")


def test_leaving_the_initial_field_costs_little_at_first_and_never_more_than_the_weight():
    residual = torch.zeros(1, 3, 2, 2, 2)
    term = TrustTerm(softness=0.5)
    costs = []
    for length in (0.0, 0.5, 50.0):
        residual[:, 0] = length
        costs.append(float(term(FieldState(residual, residual))))
    assert costs == pytest.approx([0.0, 0.5, 1.0], abs=1e-3)


# Weights


@pytest.mark.parametrize("preset", LEARNED)
def test_a_preset_without_weights_says_how_to_come_by_them_before_any_work(preset: str, pair: PhantomPair):
    missing = load_preset(preset).networks - {entry.architecture for entry in (find_model("sam"),)}
    if preset in usable_preset_names():
        pytest.skip("its weights are shipped")
    with pytest.raises(UsageError, match=f"train deform --network {missing.pop()}"):
        register(pair.fixed, pair.moving, preset=preset)


def test_a_preset_is_usable_once_its_weights_are_there():
    before = set(usable_preset_names())
    install_random("rwcnet")
    assert set(usable_preset_names()) == before | {"rwcnet", "rwcnet-io"}


def test_the_model_that_was_added_last_is_taken_unless_another_is_named():
    for name in ("first", "second"):
        weights = build_deformable_network("voxelmorph", TINY).state_dict()
        install(entry_of("voxelmorph", name, TINY), weights)
    assert find_deformable("voxelmorph").name == "second"
    assert find_deformable("voxelmorph", "first").name == "first"
    with pytest.raises(UsageError, match="of the network voxelmorph, not of lapirn"):
        find_deformable("lapirn", "first")


def test_a_preset_that_names_no_network_is_refused(pair: PhantomPair):
    plain = load_preset("voxelmorph")
    with pytest.raises(InputError, match="no network"):
        register(pair.fixed, pair.moving, preset=replace(plain, stages=(plain.stages[0], Stage("learned", {}))))


def test_weights_of_our_training_are_imported_with_what_they_need(tmp_path: Path):
    network = build_deformable_network("voxelmorph", TINY)
    configuration = {"network": TINY, "window": [-100, 300], "lowest": 0.0, "features": None, "losses": LOSSES}
    metadata = {"architecture": "voxelmorph", "spacing": "3.0", "configuration": json.dumps(configuration)}
    path = tmp_path / "latest.safetensors"
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, path, metadata)
    entry = import_checkpoint(path, "mine")
    verify(entry)
    loaded = load_deformable(find_model("mine"))
    assert loaded.spacing == 3.0 and loaded.normalization == Normalization((-100.0, 300.0), 0.0)
    for name, value in loaded.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_published_lapirn_weights_are_imported(tmp_path: Path, diffeomorphic: bool):
    path = tmp_path / "LapIRN.pth"
    torch.save(published_lapirn(), path)
    entry = import_checkpoint(path, "lapirn-oasis", diffeomorphic=diffeomorphic)
    assert entry.architecture == "lapirn" and entry.configuration["network"]["diffeomorphic"] == diffeomorphic
    loaded = load_deformable(entry)
    assert sum(value.numel() for value in loaded.network.parameters()) == 923_748
    assert loaded.normalization == Normalization(None, 0.0)


def test_a_lapirn_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path):
    weights = OrderedDict(list(published_lapirn().items())[:-1])
    torch.save(weights, tmp_path / "broken.pth")
    with pytest.raises(InputError, match="do not fit the network lapirn"):
        import_checkpoint(tmp_path / "broken.pth", "broken")


def test_a_network_that_predicts_displacements_is_no_model_of_features():
    install_random("voxelmorph")
    with pytest.raises(InputError, match="gives no features"):
        get_extractor("my-voxelmorph")


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        (Normalization((-800.0, 400.0)), [-1, -1, -0.5, 1]),
        (Normalization((-800.0, 400.0), 0.0), [0, 0, 0.25, 1]),
        (Normalization(None, 0.0), [0, 0.1, 0.25, 1]),
    ],
)
def test_intensities_fill_the_range_that_the_network_knows(normalization: Normalization, expected: list[float]):
    values = torch.tensor([-1000.0, -800.0, -500.0, 1000.0])
    torch.testing.assert_close(normalization(values), torch.tensor(expected, dtype=torch.float32))
