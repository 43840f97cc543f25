"""`samreg train` as a process of its own, which prints a digest of the parameters it ends with."""

from __future__ import annotations

import argparse
import hashlib
import sys

from SAMRegistrationLib.training import model_card, trainer
from SAMRegistrationLib.training.command import add_train_arguments, run_train


class DigestedTrainer(trainer.Trainer):
    """Prints the digest at the end of the run."""

    def run(self) -> list[float]:
        losses = super().run()
        digest = hashlib.sha256()
        for parameter in self.network.parameters():
            digest.update(parameter.detach().contiguous().numpy().tobytes())
        print("digest", digest.hexdigest(), flush=True)
        return losses


def main() -> int:
    trainer.Trainer = model_card.Trainer = DigestedTrainer  # type: ignore[misc]
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers())
    return run_train(parser.parse_args(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
