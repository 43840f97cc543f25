"""Which voxels an iteration of a descent looks at."""

from __future__ import annotations

_ODD_PERIOD = 8


def lattice_slices(iteration: int, step: int) -> tuple[slice, slice, slice]:
    """Every step-th voxel; consecutive iterations visit far shifts of the lattice in turn.

    An even lattice visits all of them, an odd one eight that lie evenly between each other.
    """
    shift = iteration % lattice_period(step) * (step**3 // (3 if step % 2 else 2) + 1) % step**3
    return (
        slice(shift // step**2, None, step),
        slice(shift // step % step, None, step),
        slice(shift % step, None, step),
    )


def lattice_period(step: int) -> int:
    """After so many iterations the same voxels are looked at again."""
    return min(step**3, _ODD_PERIOD) if step % 2 else step**3
