"""No registration: the alignment in which a pair is found."""

from __future__ import annotations

from ..method import Outcome, Task, affine


class Initial:
    """Shared world frames are taken as they are; otherwise the centers of both volumes are aligned."""

    name = "initial"
    default_start: str | None = None

    def load(self) -> None:
        """Nothing is needed."""

    def run(self, task: Task) -> Outcome:
        return Outcome(affine(task.pair.start_matrix()), settings={"start": task.pair.start.value})
