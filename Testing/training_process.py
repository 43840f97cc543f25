"""`samreg train` as a process of its own, which prints a digest of the parameters it ends with."""

from __future__ import annotations

import argparse
import hashlib
import sys

from SAMRegistrationLib.training.command import add_train_arguments, run_train
from SAMRegistrationLib.training.loop import TrainingLoop


def digest_of(trainer: TrainingLoop) -> str:
    """A short name for the parameters of the network."""
    digest = hashlib.sha256()
    for parameter in trainer.network.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> int:
    run = TrainingLoop.run

    def run_and_tell(trainer: TrainingLoop) -> list[float]:
        losses = run(trainer)
        print("digest", digest_of(trainer), flush=True)
        return losses

    TrainingLoop.run = run_and_tell  # type: ignore[method-assign]
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers())
    return run_train(parser.parse_args(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
