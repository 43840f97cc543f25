"""The descent of `instance_optimization` on a GPU, which never waits for the processor.

An iteration is some hundred small kernels. Launched one by one they take ten times as long as they compute, and a
loss that is read after each of them makes both sides wait. So the loss stays on the GPU, which also decides there
when to stop, and an iteration is recorded once as a CUDA graph and then launched as a whole. Iterations look at
different voxels in turn; each of these turns has a graph of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from SAMRegistrationLib.solvers.adam import Adam
from SAMRegistrationLib.solvers.descent import Callback, Descent, OptimizationConfig, rate_share
from SAMRegistrationLib.solvers.recorder import Recorder
from SAMRegistrationLib.solvers.terms import Term

ITERATIONS_BETWEEN_REPORTS = 16
LEAST_ITERATIONS_PER_GRAPH = 4
"""Recording an iteration takes as long as running it."""


def descend_on_gpu(
    initial: torch.Tensor, terms: Sequence[Term], config: OptimizationConfig, callback: Callback | None
) -> tuple[torch.Tensor, list[float]]:
    """The field and the loss of every iteration; arguments as for `optimize`."""
    current = torch.cuda.current_stream(initial.device)
    recorder = Recorder.of(initial.device)
    recorder.stream.wait_stream(current)
    with torch.cuda.stream(recorder.stream):
        descent = Descent(initial, terms, config)
        losses = DeviceDescent(descent).run(recorder, callback)
        u = descent.field()
    current.wait_stream(recorder.stream)
    u.record_stream(current)
    return u, losses


class DeviceDescent:
    """A descent whose whole state lies on one device.

    Args:
        descent: what to descend on.
    """

    def __init__(self, descent: Descent) -> None:
        self.descent = descent
        config, device = descent.config, descent.parameter.device
        self._adam = Adam(descent.parameter)
        rates = [config.learning_rate * rate_share(iteration, config) for iteration in range(config.iterations)]
        self._coefficients = torch.tensor(
            [self._adam.coefficients(iteration + 1, rate) for iteration, rate in enumerate(rates)], device=device
        )
        # What lies before the first loss is infinite: nothing has settled as long as that is in sight.
        self._window = 2 * config.patience
        self._losses = torch.full((self._window + config.iterations,), math.inf, device=device)
        self._recent = torch.arange(1, self._window + 1, device=device)
        self._iteration = torch.zeros(1, dtype=torch.int64, device=device)
        self._running = torch.ones(1, device=device)
        self._made = torch.zeros(1, device=device)

    def run(self, recorder: Recorder | None, callback: Callback | None) -> list[float]:
        """Descend until nothing is gained any more; the loss of every iteration.

        Args:
            recorder: of graphs; None to launch all iterations one by one.
            callback: told of some iterations at a time; may raise to cancel.
        """
        total, period = self.descent.config.iterations, self._period()
        graphs: list[torch.cuda.CUDAGraph] = []
        losses: list[float] = []
        for iteration in range(total):
            if iteration == 1 and recorder is not None and period is not None:
                graphs = self._recorded(recorder, period)
            if graphs:
                graphs[iteration % len(graphs)].replay()
            else:
                self.iterate(iteration)
            if (iteration + 1) % ITERATIONS_BETWEEN_REPORTS == 0 or iteration + 1 == total:
                made, *found = torch.cat((self._made, self._losses[self._window :])).tolist()
                known, losses = len(losses), found[: int(made)]
                if callback is not None:
                    for number in range(known, len(losses)):
                        callback(number, losses[number])
                if len(losses) < iteration + 1:
                    break
        return losses

    def iterate(self, iteration: int) -> None:
        """One iteration; it changes nothing any more once the descent has settled."""
        config = self.descent.config
        loss, gradient = self.descent.loss_and_gradient(iteration)
        with torch.no_grad():
            root, scale = self._coefficients.index_select(0, self._iteration)[0]
            self._adam.step_by(gradient, root, scale * self._running)
            self._losses.index_copy_(0, self._iteration + self._window, loss[None])
            self._made += self._running
            if config.tolerance > 0:
                recent = self._losses.index_select(0, self._iteration + self._recent).double()
                before, after = recent.view(2, -1).sum(dim=1)
                self._running *= (~(before - after < config.tolerance * before.abs())).float()
            self._iteration += 1

    def _period(self) -> int | None:
        """After so many iterations the same voxels are looked at again; None where a term cannot be recorded."""
        periods = [getattr(term, "period", None) for term in self.descent.terms]
        known = [period for period in periods if period is not None]
        period = math.lcm(*known)
        most = self.descent.config.iterations // LEAST_ITERATIONS_PER_GRAPH
        return period if len(known) == len(periods) and period <= most else None

    def _recorded(self, recorder: Recorder, period: int) -> list[torch.cuda.CUDAGraph]:
        """A graph for every iteration of a period; none where one of them cannot be recorded."""
        graphs = []
        for iteration in range(period):
            graph = recorder.record(lambda iteration=iteration: self.iterate(iteration))  # type: ignore[misc]
            if graph is None:
                return []
            graphs.append(graph)
        return graphs
