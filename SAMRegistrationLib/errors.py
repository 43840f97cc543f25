"""What can go wrong because of the input or the machine, as one clear sentence for the user.

Every class carries the exit status that the command line ends with.
"""

from __future__ import annotations


class RegistrationError(Exception):
    """Base of the errors whose message is meant for the user; exit status 1."""

    exit_status = 1


class UsageError(RegistrationError):
    """The call itself is wrong: an unknown preset, options that exclude each other."""

    exit_status = 2


class InputError(RegistrationError):
    """A file, image, transform or device that cannot be used as given."""

    exit_status = 3


class NotEnoughMemoryError(RegistrationError):
    """The work does not fit into memory; the message says how much is needed and what fits."""

    exit_status = 4


class Cancelled(RegistrationError):  # noqa: N818 - a user's wish, not a fault
    """The user stopped the work; nothing was written."""

    exit_status = 130


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch on a CPU and ITK say so in words only."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


class RegistrationWarning(UserWarning):
    """Something the user should know about a result that was nevertheless produced."""
