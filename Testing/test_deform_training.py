"""Training of deformable networks: configurations, pairs, resumption, processes, and what stops a run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from SAMRegistrationLib.errors import InputError, RegistrationError, UsageError
from SAMRegistrationLib.networks.deformable import build_deformable_network
from SAMRegistrationLib.networks.fields import warp
from SAMRegistrationLib.training.cache import CachedVolume, build_cache
from SAMRegistrationLib.training.checkpoint import CHECKPOINT_FILE, WEIGHTS_FILE
from SAMRegistrationLib.training.command import add_train_arguments, run_train
from SAMRegistrationLib.training.deformable import starts as starts_module
from SAMRegistrationLib.training.deformable.config import (
    DeformableConfig,
    read_configuration,
    shipped_configurations,
)
from SAMRegistrationLib.training.deformable.pairs import PairSource
from SAMRegistrationLib.training.deformable.pictures import middle_slices
from SAMRegistrationLib.training.deformable.starts import Starts, affine_starts, centered_starts
from SAMRegistrationLib.training.deformable.trainer import DeformableTrainer, warped_pair
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.transforms import AffineTransform
from Testing.training_process import digest_of
from Testing.training_volumes import write_manifest

CPU = torch.device("cpu")
TINY = {"encoder": [4, 8], "decoder": [8, 4, 4]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def volumes(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedVolume]:
    return build_cache(read_manifest(manifest), tmp_path_factory.mktemp("cache"), 2.0).volumes


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(**changes: Any) -> dict[str, Any]:
    plain = {
        "architecture": "voxelmorph",
        "network": TINY,
        "iterations": 4,
        "learning_rate": 1e-3,
        "mixed_precision": False,
        "pairs": {"shape": [16, 16, 16], "spacing": 4.0, "start": "center"},
        "loss": {"lncc": 1.0, "radius": 2, "diffusion": 0.1},
    }
    return {**plain, **changes}


def source_for(volumes: list[CachedVolume], **changes: Any) -> PairSource:
    config = DeformableConfig.from_dict(settings(**changes))
    return PairSource(volumes, centered_starts(volumes), config, CPU)


def trainer_for(volumes: list[CachedVolume], out: Path, **changes: Any) -> DeformableTrainer:
    out.mkdir(exist_ok=True)
    source = source_for(volumes, **changes)
    return DeformableTrainer(source, source.config, out, quiet=True)


def command(manifest: Path, out: Path, configuration: dict[str, Any], *more: str) -> list[str]:
    file = out.parent / "settings.json"
    file.write_text(json.dumps(configuration))
    given = ["--data", str(manifest), "--out", str(out), "--config", str(file)]
    return ["train", "deform", *given, "--device", "cpu", "--quiet", *more]


def run_command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers())
    return run_train(parser.parse_args(arguments))


# Configurations


@pytest.mark.parametrize("name", shipped_configurations())
def test_every_configuration_is_complete_and_builds_its_network(name: str):
    config = read_configuration(name)
    assert DeformableConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with torch.device("meta"):
        network = build_deformable_network(config.architecture, config.network)
    assert config.source.endswith(".")
    assert len(config.stage_iterations) in (0, network.stages)
    assert not any(size % max(network.strides) for size in config.pairs.shape)
    assert config.loss.diffusion or config.loss.total_variation


def test_there_is_a_configuration_for_each_paper():
    assert {"voxelmorph", "same", "rso", "lapirn", "rwcnet"} <= set(shipped_configurations())


@pytest.mark.parametrize(
    "changes", [{"iteration": 3}, {"loss": {"lcc": 1.0}}, {"pairs": {"shapes": [8, 8, 8]}}, {"pairs": 3}]
)
def test_an_unknown_setting_is_refused(tmp_path: Path, changes: dict[str, Any]):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(settings(**changes)))
    with pytest.raises(UsageError, match=r"mine\.json"):
        read_configuration(file)


def test_stages_follow_each_other_and_stay_frozen_as_long_as_the_configuration_says():
    config = DeformableConfig(stage_iterations=(3, 4, 5), frozen=2)
    assert config.iterations == 12
    assert [config.stage_at(i) for i in (0, 2, 3, 4, 5, 6, 7, 11, 12)] == [
        (0, True),
        (0, False),
        (1, True),
        (1, True),
        (1, False),
        (1, False),
        (2, True),
        (2, False),
        (2, False),
    ]
    assert replace(config, frozen=None).stage_at(11) == (2, True)


# Pairs


def test_the_same_iteration_gives_the_same_pair_and_another_one_another(volumes: list[CachedVolume]):
    first, second = source_for(volumes), source_for(volumes)
    pair, again = (source.draw(source.generator(5))[0] for source in (first, second))
    other = first.draw(first.generator(6))[0]
    assert pair.names == again.names and torch.equal(pair.moving, again.moving)
    assert not torch.equal(pair.fixed, other.fixed)


def test_pairs_between_subjects_are_of_two_subjects_of_one_region(volumes: list[CachedVolume]):
    source = source_for(volumes)
    regions = {volume.name: volume.region for volume in volumes}
    for part in range(10):
        names = source.draw(source.generator(part))[0].names
        assert len(names) == 2 and len({regions[name] for name in names}) == 1


def test_the_known_field_of_a_generated_pair_takes_the_moving_side_to_the_fixed_one(volumes: list[CachedVolume]):
    pairs = {"shape": [24, 24, 24], "spacing": 3.0, "kinds": {"generated": 1.0}, "elastic": 4.0, "turn": 10.0}
    source = source_for(volumes, pairs={**pairs, "scale": 1.1})
    pair = source.draw(source.generator(1))[0]
    assert pair.known is not None and float(pair.known.abs().max()) > 0.5
    inner = (..., slice(5, -5), slice(5, -5), slice(5, -5))

    def rough(volume: torch.Tensor) -> float:
        return float((volume - pair.fixed)[inner].abs().mean())

    assert rough(warp(pair.moving, pair.known)) < 0.5 * rough(pair.moving)
    assert rough(warp(pair.moving, -pair.known)) > rough(pair.moving)


def test_a_start_moves_volume_embedding_and_keypoints_alike(volumes: list[CachedVolume]):
    """The same volume twice, the second told to lie elsewhere: the crops agree again where both have data."""
    original = volumes[0]
    twin = replace(original, name="twin", subject="twin")
    twin_image, twin_labels = original.image(), original.labels()
    shift = np.eye(4)
    shift[:3, 3] = (4.0, -6.0, 2.0)

    class Twin(CachedVolume):
        def image(self) -> np.ndarray:
            return np.roll(twin_image, (1, -3, 2), axis=(0, 1, 2))

        def labels(self) -> np.ndarray:
            return np.roll(twin_labels, (1, -3, 2), axis=(0, 1, 2))

    moved = {name: [[p[0] + 4, p[1] - 6, p[2] + 2] for p in points] for name, points in original.landmarks.items()}
    other = Twin(**{**vars(twin), "landmarks": moved})
    config = DeformableConfig.from_dict(settings())
    source = PairSource([original, other], Starts({original.name: np.eye(4), "twin": shift}), config, CPU)
    for part in range(4):
        pair = source.draw(source.generator(part))[0]
        inside = pair.inside.bool()
        difference = (pair.fixed - pair.moving)[inside].abs()
        assert float(difference.median()) < 1e-3 and float(difference.mean()) < 0.05
        if pair.keypoints is not None:
            torch.testing.assert_close(pair.keypoints[0], pair.keypoints[1], atol=1e-3, rtol=0)


def test_volumes_that_could_not_be_aligned_are_paired_with_nobody(volumes: list[CachedVolume]):
    matrices = dict(centered_starts(volumes).matrices)
    matrices[volumes[0].name] = None
    config = DeformableConfig.from_dict(settings())
    region = [volume for volume in volumes if volume.region == volumes[0].region]
    with pytest.raises(InputError, match="no pairs"):
        PairSource(region[:2], Starts(matrices), config, CPU)


def test_volumes_are_aligned_once_and_pairs_go_through_the_common_one(
    volumes: list[CachedVolume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def shifted(problem: Any, *_: Any) -> None:
        calls.append(problem)
        matrix = np.eye(4)
        matrix[0, 3] = 10.0 * len(calls)
        problem.initial = AffineTransform(matrix)
        problem.details["align"] = {"inliers": 100}

    monkeypatch.setattr(starts_module, "run_stage", shifted)
    members = [replace(volume, region="one") for volume in volumes[:3]]
    found = affine_starts(members, None, tmp_path, say=lambda _: None)  # type: ignore[arg-type]
    assert len(calls) == 2
    np.testing.assert_allclose(found.between(members[1], members[2])[:3, 3], (10.0, 0.0, 0.0))
    again = affine_starts(members, None, tmp_path, say=lambda _: None)  # type: ignore[arg-type]
    assert len(calls) == 2
    np.testing.assert_allclose(again.between(members[2], members[0])[:3, 3], (-20.0, 0.0, 0.0))


def test_a_pair_that_was_warped_is_compared_at_the_warped_places(volumes: list[CachedVolume]):
    source = source_for(volumes, pairs={**settings()["pairs"], "kinds": {"generated": 1.0}, "elastic": 4.0})
    pair = source.draw(source.generator(2))[0]
    assert pair.known is not None
    after = warped_pair(pair, pair.known)
    assert after.known is None
    assert float((after.moving - after.fixed).abs().mean()) < float((pair.moving - pair.fixed).abs().mean())


# Runs


def test_the_same_seed_gives_the_same_losses_and_another_seed_gives_others(
    volumes: list[CachedVolume], tmp_path: Path
):
    first, second = (trainer_for(volumes, tmp_path / name).run() for name in "ab")
    assert first == second
    assert first != trainer_for(volumes, tmp_path / "c", seed=2).run()


def test_training_lowers_the_loss_on_generated_pairs(volumes: list[CachedVolume], tmp_path: Path):
    pairs = {**settings()["pairs"], "kinds": {"generated": 1.0}, "elastic": 6.0}
    loss = {"known": 1.0}
    losses = trainer_for(
        volumes, tmp_path / "run", iterations=60, learning_rate=5e-3, pairs=pairs, loss=loss
    ).run()
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_lower_stages_stay_as_they_are_while_they_are_frozen(volumes: list[CachedVolume], tmp_path: Path):
    changes = {"architecture": "lapirn", "network": {"width": 4}, "stage_iterations": [2, 2, 2], "frozen": None}
    trainer = trainer_for(volumes, tmp_path / "run", **changes)
    states: list[dict[str, torch.Tensor]] = []
    accumulate = trainer._accumulate

    def watched(pairs: Any) -> dict[str, float]:
        states.append({name: value.clone() for name, value in trainer.network.levels[0].state_dict().items()})
        return accumulate(pairs)

    trainer._accumulate = watched  # type: ignore[method-assign]
    trainer.run()
    first, still, later = states[0], states[2], states[-1]
    assert any(not torch.equal(first[name], still[name]) for name in first)
    assert all(torch.equal(still[name], later[name]) for name in still)


def test_a_part_of_the_steps_goes_on_from_what_the_network_predicts(
    volumes: list[CachedVolume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = trainer_for(volumes, tmp_path / "run", pairs={**settings()["pairs"], "repeated": 1.0})
    seen = []
    monkeypatch.setattr(trainer, "_gone_on", lambda pair: seen.append(pair) or pair)
    trainer.run()
    assert len(seen) == 4


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_volumes(
    volumes: list[CachedVolume], tmp_path: Path
):
    trainer = trainer_for(volumes, tmp_path / "run")
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(RegistrationError, match=r"not a number at iteration 1; the volumes were v\d, v\d"):
        trainer.run()


def test_mixed_precision_follows_full_precision(volumes: list[CachedVolume], tmp_path: Path):
    """Bfloat16 has eight bits for the number itself."""
    full, mixed = (
        trainer_for(volumes, tmp_path / str(mixed), mixed_precision=mixed).run() for mixed in (False, True)
    )
    assert full != mixed
    np.testing.assert_allclose(full, mixed, rtol=0.02)


def test_the_picture_shows_fixed_moving_warped_and_what_is_left(volumes: list[CachedVolume]):
    source = source_for(volumes, pairs={**settings()["pairs"], "kinds": {"generated": 1.0}})
    pair = source.draw(source.generator(1))[0]
    shift = torch.zeros(1, 3, 8, 8, 8)
    picture = middle_slices(replace(pair, moving=pair.fixed), shift)
    assert tuple(picture.shape) == (1, 32, 64) and float(picture.min()) >= 0 and float(picture.max()) <= 1
    fixed, moving, warped, difference = picture[0, :16].split(16, dim=1)
    torch.testing.assert_close(fixed, (pair.fixed[0, 0, 8] + 1) / 2)
    torch.testing.assert_close(fixed, moving)
    torch.testing.assert_close(fixed, warped, atol=1e-5, rtol=0)
    assert float(difference.max()) < 1e-5


def test_crops_that_do_not_fit_the_network_are_refused(volumes: list[CachedVolume], tmp_path: Path):
    with pytest.raises(ValueError, match="no multiple of 4"):
        trainer_for(
            volumes,
            tmp_path / "run",
            architecture="lapirn",
            network={"width": 4},
            pairs={**settings()["pairs"], "shape": [16, 18, 16]},
        )


def test_the_command_writes_weights_that_say_how_they_were_trained(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    changes = {"network": {**TINY, "coarse_stride": [4, 4, 4]}, "architecture": "sam-voxelmorph"}
    configuration = settings(**changes, iterations=2)
    configuration["network"] = {"backbone": "u-net", **configuration["network"]}
    configuration["loss"] = {**configuration["loss"], "sam": 1.0}
    assert run_command(command(manifest, out, configuration, "--seed", "3")) == 0
    card = json.loads((out / "model_card.json").read_text())
    assert card["iterations"] == 2 and card["seed"] == 3 and len(card["volumes"]) == 4
    assert card["continue_with"].startswith("samreg train deform --network sam-voxelmorph --data manifest.json")
    with safe_open(out / WEIGHTS_FILE, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == "sam-voxelmorph" and metadata["spacing"] == "4.0"
    trained = json.loads(metadata["configuration"])
    assert trained["features"] == "sam-lite" and trained["losses"]["sam"] == 1.0
    assert trained["window"] == [-800.0, 400.0]
    pytest.importorskip("tensorboard")
    assert list((out / "tensorboard").iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--config", "fancy"], "there is no configuration fancy"),
        (["--network", "fancy"], "no configuration comes with the network fancy"),
        ([], "say what to train"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(
    manifest: Path, tmp_path: Path, more: list[str], sentence: str
):
    with pytest.raises(UsageError, match=sentence):
        run_command(["train", "deform", "--data", str(manifest), "--out", str(tmp_path / "out"), *more])


@pytest.mark.slow
def test_two_processes_train_together_and_stay_equal(manifest: Path, tmp_path: Path):
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "Testing/training_process.py", *command(manifest, out, settings(iterations=3))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "model_card.json").read_text())
    assert card["processes"] == 2 and card["iterations"] == 3
    digests = [line for line in done.stdout.splitlines() if line.startswith("digest")]
    assert len(digests) == 2 and len(set(digests)) == 1


@pytest.mark.slow
def test_a_killed_run_goes_on_along_the_same_trajectory_and_loses_one_interval_at_most(
    manifest: Path, volumes: list[CachedVolume], tmp_path: Path
):
    """An interval is one iteration here."""
    out = tmp_path / "out"
    configuration = settings(iterations=40, checkpoint_minutes=0.0)
    arguments = command(manifest, out, configuration)
    process = subprocess.Popen(
        [sys.executable, "Testing/training_process.py", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (out / CHECKPOINT_FILE).is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(out / CHECKPOINT_FILE, weights_only=True)["iteration"]
    assert 0 < reached < 40

    assert run_command(arguments) == 0
    state = torch.load(out / CHECKPOINT_FILE, weights_only=True)
    whole = trainer_for(volumes, tmp_path / "whole", iterations=40)
    whole.run()
    whole_digest = digest_of(whole)
    whole.network.load_state_dict(state["network"])
    assert state["iteration"] == 40 and digest_of(whole) == whole_digest
