"""Threads that let go of a processor which others want too."""

from __future__ import annotations

from collections.abc import Mapping

_VARIABLE = "GOMP_SPINCOUNT"
_LET_GO = {_VARIABLE: "3000"}
"""Looks at whether there is work before a thread goes to sleep: long enough for the gap between two operations."""

_SAID_BY_THE_USER = (_VARIABLE, "OMP_WAIT_POLICY")


def letting_go(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment of a process that will load torch.

    GNU's OpenMP, which torch computes with on Linux, keeps waiting threads busy for milliseconds. Beside another
    program on the same processors they hold up the very threads that they wait for: a registration on two cores,
    one of them wanted by somebody else, took minutes instead of half a minute. Must be set before torch is loaded.

    Args:
        environment: as it is; what it says about waiting stays.
    """
    return {} if any(name in environment for name in _SAID_BY_THE_USER) else dict(_LET_GO)
