"""What a run says while it goes on: a bar or lines with the time left, and TensorBoard."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

LINE_EVERY = 10


class Progress:
    """Reports the first process's iterations: a bar on a terminal that has tqdm, lines elsewhere."""

    def __init__(self, folder: Path, start: int, total: int, *, quiet: bool = False) -> None:
        self.start = start
        self.total = total
        self.quiet = quiet
        self.began = time.monotonic()
        self.sums: dict[str, list[float]] = {}
        self.bar = None if quiet else _terminal_bar(start, total)
        self.writer = _tensorboard_writer(folder)

    def update(self, iteration: int, values: dict[str, float]) -> None:
        """Report one finished iteration; `iteration` counts from 1."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, iteration)
        for name, value in values.items():
            self.sums.setdefault(name, []).append(value)
        if self.bar is not None:
            self.bar.total = self.total
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
            self.bar.update(1)
        elif not self.quiet and (iteration % LINE_EVERY == 0 or iteration == self.total):
            self._line(iteration)

    def note(self, sentence: str) -> None:
        """Say something in between."""
        if self.bar is not None:
            self.bar.write(sentence, file=sys.stderr)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar and the log."""
        if self.bar is not None:
            self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def seconds(self) -> float:
        """Since the start of this process's part of the run."""
        return time.monotonic() - self.began

    def _line(self, iteration: int) -> None:
        left = self.seconds() / (iteration - self.start) * (self.total - iteration)
        means = "  ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in self.sums.items())
        print(f"iteration {iteration}/{self.total}  {_clock(left)} left  {means}", flush=True)
        self.sums.clear()


def _terminal_bar(start: int, total: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(initial=start, total=total, unit="it", dynamic_ncols=True)


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
