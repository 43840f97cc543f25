"""What the parts of the deformable networks and of the coarse-to-fine search are worth, at any scale.

    python -m Testing.benchmarks.deformable_ablations --data FOLDER --cache DIR --out DIR
        [--settings FILE] [--parts same,rwcnet,samconvex] [--report]

DIR keeps every network, every pair's result and what was prepared; what is there is not done again. The settings
(`deformable_ablations.json`) say how large crops and networks are, how long each is trained and on how many pairs
it is judged. `--report` prints the tables of RESULTS.md from what is there. Volumes of validation are those of
`Testing/training_split.json`.

- same: loss and correlation features of embeddings (SAME, table 2), each with and without instance optimization.
- rwcnet: correlation, steps of the recurrence and resolutions (RWCNet, table 3.3), beside VoxelMorph, on deformed
  volumes whose field is known.
- samconvex: levels and search radius (SAMConvex, table 3).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.features.sam import SamExtractor
from SAMRegistrationLib.methods.instance_optimization import instance_optimization
from SAMRegistrationLib.methods.learned import predicted
from SAMRegistrationLib.methods.problem import Problem, TrainedObjective
from SAMRegistrationLib.methods.sam_coarse import sam_coarse
from SAMRegistrationLib.methods.samconvex import samconvex
from SAMRegistrationLib.models.deformable import DeformableModel, Normalization
from SAMRegistrationLib.networks.deformable import DeformableNetwork
from SAMRegistrationLib.presets import load_preset
from SAMRegistrationLib.solvers.ops import upsample
from SAMRegistrationLib.training.cache import build_cache
from SAMRegistrationLib.training.deformable.config import DeformableConfig
from SAMRegistrationLib.training.deformable.embeddings import EmbeddingStore
from SAMRegistrationLib.training.deformable.starts import STARTS_FILE, affine_starts
from SAMRegistrationLib.training.deformable.trainer import DeformableTrainer, trained_losses
from SAMRegistrationLib.training.manifest import read_training_volumes

from .deformable_ablation_measures import PairFields, Results, known_errors
from .deformable_ablation_pairs import BOX, SPACING, FramedPairs, FramedVolume, framed_volumes
from .deformable_ablation_tables import tables

SETTINGS = Path(__file__).with_name("deformable_ablations.json")
SPLIT = Path(__file__).parents[1] / "training_split.json"
NEVER_TRAINED = 10**6
"""Random numbers of this iteration and later make the pairs to judge by."""


@dataclass(eq=False)
class Data:
    """The volumes in the frame of the first one to be trained on."""

    folder: Path
    cache: Path
    out: Path
    settings: dict[str, Any]

    @cached_property
    def store(self) -> EmbeddingStore:
        extractor = get_extractor("sam", "cpu", strict=True)
        assert isinstance(extractor, SamExtractor)
        return EmbeddingStore(extractor, self.cache / "embeddings")

    @cached_property
    def framed(self) -> dict[str, list[FramedVolume]]:
        """Those of training and of validation."""
        chosen, held_out = read_training_volumes(self.folder / "manifest.json", SPLIT)
        of_region = [volume for volume in chosen if volume.region == self.settings["region"]]
        validation = [volume for volume in held_out if volume.region == self.settings["region"]]
        numbers = self.settings["volumes"]
        kinds = {
            "training": self._aligned_first(of_region)[: numbers["training"]],
            "validation": random.Random(self.settings["seed"]).sample(validation, numbers["validation"]),
        }
        wanted = [volume for kind in kinds.values() for volume in kind]
        cached = build_cache(wanted, self.cache, self.store.extractor.spacing or 2.0).volumes
        starts = affine_starts(cached, self.store.extractor, self.cache)
        reference = cached[0]
        framed: dict[str, list[FramedVolume]] = {}
        for kind, volumes in kinds.items():
            names = {volume.name for volume in volumes}
            usable = [volume for volume in cached if volume.name in names and starts.aligned(volume)]
            framed[kind] = framed_volumes(usable, starts, self.store, reference, self.out / "frames")
        return framed

    def _aligned_first(self, volumes: list[Any]) -> list[Any]:
        """Those that an earlier training has aligned already come first, in its order."""
        path = self.cache / STARTS_FILE
        known = list(json.loads(path.read_text())) if path.is_file() else []
        return sorted(volumes, key=lambda v: known.index(v.name) if v.name in known else len(known))

    def pairs(self, number: int) -> Iterator[tuple[str, FramedVolume, FramedVolume]]:
        """Validation pairs, each volume once as fixed and once as moving one."""
        volumes = self.framed["validation"]
        for fixed, moving in list(pairwise([*volumes, volumes[0]]))[:number]:
            yield f"{fixed.name}__{moving.name}", fixed, moving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="as in samreg train deform")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--report", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out / "results.json")
    if not arguments.report:
        torch.set_num_threads(1)
        settings = json.loads(arguments.settings.read_text())
        data = Data(arguments.data, arguments.cache, arguments.out, settings)
        for part in arguments.parts.split(","):
            PARTS[part](data, results)
    print(tables(results.values))


def trained(data: Data, results: Results, part: str, name: str) -> tuple[DeformableNetwork, DeformableConfig]:
    """The running average of a network's training, which goes on where it was left."""
    common, variant = data.settings[part]["common"], data.settings[part]["variants"][name]
    values = {**common, **{k: v for k, v in variant.items() if not isinstance(v, dict)}}
    values |= {key: {**common.get(key, {}), **variant.get(key, {})} for key in ("network", "pairs", "loss")}
    if "architecture" in variant:
        values["network"] = variant.get("network", {})
    config = DeformableConfig.from_dict({**values, "seed": data.settings["seed"]})
    store = data.store if part == "same" else None
    source = FramedPairs(data.framed["training"], config, store)
    folder = data.out / part / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = DeformableTrainer(source, config, folder, quiet=True)
    trainer.resume()

    def run() -> dict[str, Any]:
        last = trainer.run()[-50:]
        parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        return {"iterations": config.iterations, "loss": sum(last) / len(last), "parameters": parameters}

    results.once(f"{part}/training/{name}", run)
    return trainer.average.eval(), config


def same(data: Data, results: Results) -> None:
    """The loss and the correlation of embeddings, by Dice of organs on validation pairs."""
    settings = data.settings["same"]
    models = {name: _model(data, *trained(data, results, "same", name), name) for name in settings["variants"]}
    for index, (pair, fixed, moving) in enumerate(data.pairs(settings["pairs"])):
        problem = Problem(fixed.as_image(), moving.as_image(), data.store.extractor)
        fields = PairFields(problem, fixed, moving, results, f"same/{pair}")
        alone = settings["optimized_alone"] if index < settings["optimized_pairs"] else ()
        for start in settings["starts"]:
            before = fields.field(start, STARTS[start], start=None)
            for name, model in models.items():
                found = fields.field(f"{start}, {name}", predicted, model, start=before)
                if index < settings["optimized_pairs"]:
                    fields.field(f"{start}, {name}, io", optimized_as, model, start=found)
            resting = torch.zeros((1, 3, *BOX)) if before is None else upsample(before, BOX)
            for name in alone:
                fields.field(f"{start}, optimized as {name}", optimized_as, models[name], start=resting)


def _model(data: Data, network: DeformableNetwork, config: DeformableConfig, name: str) -> DeformableModel:
    normalization = Normalization(config.pairs.window, config.pairs.lowest)
    losses = trained_losses(config.loss)
    return DeformableModel(name, network, SPACING, normalization, data.store.extractor.name, losses)


def optimized_as(problem: Problem, model: DeformableModel) -> Tensor:
    """Instance optimization of what the model was trained on, with the settings of the preset."""
    problem.trained = TrainedObjective(model.losses, model.normalization)
    stages = load_preset("same-io").stages
    settings = next(stage.settings for stage in stages if stage.name == "instance_optimization")
    return instance_optimization(problem, **settings)


def nothing(_: Problem) -> None:
    """No displacement."""


STARTS: dict[str, Callable[[Problem], Tensor | None]] = {"affine": nothing, "same-coarse": sam_coarse}


def rwcnet(data: Data, results: Results) -> None:
    """Errors in mm on deformed validation volumes, near and far."""
    settings = data.settings["rwcnet"]
    networks = {name: trained(data, results, "rwcnet", name) for name in settings["variants"]}
    for index in range(settings["pairs"]):
        for name, (network, config) in networks.items():
            source = FramedPairs(data.framed["validation"], config, None)
            pair = source.deformed(index % len(source.volumes), source.generator(NEVER_TRAINED + index))
            optimized = index < settings["optimized_pairs"]
            results.once(f"rwcnet/{index}/initial", known_errors, pair, None, optimized)
            results.once(f"rwcnet/{index}/{name}", known_errors, pair, network, optimized)


def samconvex_levels(data: Data, results: Results) -> None:
    """Dice of organs by the levels and the search radii of SAMConvex."""
    settings = data.settings["samconvex"]
    for pair, fixed, moving in data.pairs(settings["pairs"]):
        problem = Problem(fixed.as_image(), moving.as_image(), data.store.extractor)
        fields = PairFields(problem, fixed, moving, results, f"samconvex/{pair}")
        fields.field("affine", nothing, start=None)
        for name, options in settings["variants"].items():
            fields.field(name, samconvex, start=None, **options)


PARTS: dict[str, Callable[[Data, Results], None]] = {
    "samconvex": samconvex_levels,
    "same": same,
    "rwcnet": rwcnet,
}

if __name__ == "__main__":
    main()
