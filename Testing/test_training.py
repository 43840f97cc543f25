"""Training runs: determinism, resumption, several processes, and what must stop them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from SAMRegistrationLib.errors import InputError, RegistrationError, UsageError
from SAMRegistrationLib.training.cache import CachedVolume, build_cache
from SAMRegistrationLib.training.checkpoint import CHECKPOINT_FILE, WEIGHTS_FILE, write_checkpoint
from SAMRegistrationLib.training.command import add_train_arguments, run_train
from SAMRegistrationLib.training.config import TrainingConfig
from SAMRegistrationLib.training.loop import learning_rate
from SAMRegistrationLib.training.manifest import read_manifest
from SAMRegistrationLib.training.trainer import Trainer
from Testing.training_volumes import tiny_configuration, write_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def volumes(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedVolume]:
    return build_cache(read_manifest(manifest), tmp_path_factory.mktemp("cache"), 2.0).volumes


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer_for(volumes: list[CachedVolume], out: Path, **changes: Any) -> Trainer:
    out.mkdir(exist_ok=True)
    return Trainer(volumes, TrainingConfig.from_dict(tiny_configuration(**changes)), out, quiet=True)


def train_arguments(manifest: Path, out: Path, configuration: dict[str, Any], *more: str) -> list[str]:
    settings = out.parent / "settings.json"
    settings.write_text(json.dumps(configuration))
    return [
        "train",
        "sam",
        "--data",
        str(manifest),
        "--out",
        str(out),
        "--config",
        str(settings),
        "--quiet",
        *more,
    ]


def run_command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers())
    return run_train(parser.parse_args(arguments))


def test_the_same_seed_gives_the_same_losses_and_another_seed_gives_others(volumes, tmp_path):
    first = trainer_for(volumes, tmp_path / "a").run()
    second = trainer_for(volumes, tmp_path / "b").run()
    other = trainer_for(volumes, tmp_path / "c", seed=2).run()
    assert first == second
    assert first != other


def test_a_resumed_run_follows_the_trajectory_of_an_uninterrupted_one(volumes, tmp_path):
    whole = trainer_for(volumes, tmp_path / "whole")
    losses = whole.run()

    interrupted = trainer_for(volumes, tmp_path / "parts", checkpoint_minutes=0.0)
    with pytest.raises(KeyboardInterrupt):
        stop_before(interrupted, 2).run()
    resumed = trainer_for(volumes, tmp_path / "parts")
    assert resumed.resume()
    assert resumed.iteration == 2
    assert resumed.run() == losses[2:]
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def stop_before(trainer: Trainer, iteration: int) -> Trainer:
    draw = trainer.source.draw

    def draw_or_stop(generator: torch.Generator) -> Any:
        if trainer.iteration == iteration:
            raise KeyboardInterrupt
        return draw(generator)

    trainer.source.draw = draw_or_stop  # type: ignore[method-assign]
    return trainer


def test_gradient_accumulation_takes_one_step_over_several_batches(volumes, tmp_path):
    """The mean of the gradients of iterations 0 and 1 of a run without accumulation, at the same parameters."""
    separate = trainer_for(
        volumes, tmp_path / "separate", loss={**tiny_configuration()["loss"], "other_negatives": 1}
    )
    expected = []
    for part in range(2):
        separate.network.zero_grad()
        generator = separate.source.generator(part)
        separate._accumulate(separate.source.draw(generator), generator)
        expected.append(separate.network.fine_head.weight.grad.clone())

    together = trainer_for(
        volumes,
        tmp_path / "together",
        accumulation=2,
        iterations=1,
        gradient_clip=1e9,
        loss={**tiny_configuration()["loss"], "other_negatives": 1},
    )
    together.run()
    torch.testing.assert_close(
        together.network.fine_head.weight.grad, (expected[0] + expected[1]) / 2, rtol=1e-4, atol=1e-6
    )


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    config = TrainingConfig(iterations=100, warmup=10, decay=0.2, learning_rate=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 50) == 1.0
    assert learning_rate(config, 90) == pytest.approx(0.5)
    assert learning_rate(config, 100) == 0.0


def test_training_lowers_the_loss_on_volumes_it_sees(volumes, tmp_path):
    losses = trainer_for(
        volumes,
        tmp_path / "run",
        iterations=25,
        learning_rate=3e-3,
        photometric={"noise_probability": 0.0, "cut_probability": 0.0, "erosion_probability": 0.0},
    ).run()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_volumes(volumes, tmp_path):
    trainer = trainer_for(volumes, tmp_path / "run")
    with torch.no_grad():
        trainer.network.fine_head.weight.fill_(float("nan"))
    with pytest.raises(RegistrationError, match=r"not a number at iteration 1; the volumes were v\d, v\d"):
        trainer.run()


def test_a_full_disk_leaves_the_previous_checkpoint_and_lets_training_go_on(volumes, tmp_path, monkeypatch):
    trainer = trainer_for(volumes, tmp_path / "run", checkpoint_minutes=0.0)
    write_checkpoint(trainer.out, trainer._state([{}]))
    before = (trainer.out / CHECKPOINT_FILE).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RegistrationError, match="previous one is intact"):
        trainer.run()
    assert trainer.iteration == trainer.config.iterations
    assert (trainer.out / CHECKPOINT_FILE).read_bytes() == before
    assert list(trainer.out.glob("*.part")) == []


def test_a_checkpoint_of_another_architecture_is_refused(volumes, tmp_path):
    trainer = trainer_for(volumes, tmp_path / "run")
    state = trainer._state([{}])
    state["config"] = {**state["config"], "architecture": "sam-resnet18"}
    write_checkpoint(trainer.out, state)
    with pytest.raises(InputError, match="sam-resnet18, not of sam-lite"):
        trainer.resume()


def test_a_damaged_checkpoint_is_refused(volumes, tmp_path):
    trainer = trainer_for(volumes, tmp_path / "run")
    (trainer.out / CHECKPOINT_FILE).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not a readable training checkpoint"):
        trainer.resume()


def test_the_command_trains_skips_what_is_no_ct_and_writes_weights_and_a_card(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    mr = {"name": "mr", "file": "v0.nii.gz", "modality": "MR T1"}
    manifest = write_manifest(folder, 10, (mr,))
    held_out = tmp_path / "split.json"
    held_out.write_text(json.dumps({"validation": ["v9"]}))
    out = tmp_path / "out"
    configuration = tiny_configuration(iterations=2)
    assert run_command(train_arguments(manifest, out, configuration, "--held-out", str(held_out))) == 0

    card = json.loads((out / "model_card.json").read_text())
    assert card["iterations"] == 2
    assert card["skipped"] == {"mr": "mr is MR T1, not CT"}
    assert card["held_out"] == ["v9"] and "v9" not in card["volumes"]
    assert card["training_data"] == [{"source": "synthetic", "licence": "made for a test", "volumes": 9}]
    assert card["continue_with"] == (
        "samreg train sam --data manifest.json --out out --held-out split.json --iterations 4"
    )
    assert "skipped mr" in capsys.readouterr().err
    weights = load_file(out / WEIGHTS_FILE)
    assert all(value.dtype == torch.float16 for value in weights.values())


@pytest.mark.slow
def test_two_processes_train_together_and_stay_equal(manifest, tmp_path):
    """The average of both processes' gradients moves both networks; the first one writes the result."""
    out = tmp_path / "out"
    arguments = train_arguments(manifest, out, tiny_configuration(iterations=3), "--device", "cpu")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = "Testing/training_process.py"
    done = subprocess.run(
        [*launch, script, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "model_card.json").read_text())
    assert card["processes"] == 2 and card["iterations"] == 3
    state = torch.load(out / CHECKPOINT_FILE, weights_only=True)
    assert len(state["banks"]) == 2
    digests = [line for line in done.stdout.splitlines() if line.startswith("digest")]
    assert len(digests) == 2 and len(set(digests)) == 1


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(manifest, tmp_path):
    out = tmp_path / "out"
    configuration = tiny_configuration(iterations=60, checkpoint_minutes=0.0)
    arguments = [sys.executable, "Testing/training_process.py", *train_arguments(manifest, out, configuration)]
    process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / CHECKPOINT_FILE).is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(out / CHECKPOINT_FILE, weights_only=True)["iteration"]
    assert 0 < reached < 60

    shorter = tiny_configuration(iterations=reached + 1, checkpoint_minutes=0.0)
    assert run_command(train_arguments(manifest, out, shorter)) == 0
    assert torch.load(out / CHECKPOINT_FILE, weights_only=True)["iteration"] == reached + 1


def test_a_new_run_can_start_from_exported_weights(volumes, tmp_path):
    first = trainer_for(volumes, tmp_path / "first")
    first.run()
    second = trainer_for(volumes, tmp_path / "second", seed=5)
    second.start_from(first.out / WEIGHTS_FILE)
    for name, value in first.average.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"iteration": 3}, {"loss": {"temprature": 0.1}}])
def test_an_unknown_setting_is_refused(manifest, tmp_path, settings):
    with pytest.raises(UsageError, match="configuration is not valid"):
        run_command(train_arguments(manifest, tmp_path / "out", settings))
