"""Methods by name: `NAME` or `NAME@START`, where START is the method whose affine result it begins with.

A name is a peer of `METHODS`, or a preset of this library: `PRESET` or `PRESET+sam`, `+mind`, `+both` with other
features than it is shipped with. A suite may describe further methods by a module of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .ours import FEATURES

PEERS = "SAMRegistrationLib.benchmark.peers"
OURS = "SAMRegistrationLib.benchmark.ours"
OPTIONS = frozenset(["name", "method", "module", "settings", "start", "python", "limit_s"])


@dataclass(frozen=True)
class Method:
    """A way to register a pair.

    Args:
        name: as tables call it.
        module: dotted name, or file, of the module that does it; see `peers.contract`.
        settings: for that module.
        start: the method whose affine result it begins with, if any.
        python: the interpreter that it runs with.
        limit_s: seconds after which it is stopped; the suite's where None.
    """

    name: str
    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    python: str = sys.executable
    limit_s: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is a preset of this library."""
        return self.module == OURS


def _peer(module: str, start: str | None = None, **settings: Any) -> Method:
    return Method("", f"{PEERS}.{module}", settings, start)


METHODS: dict[str, Method] = {
    "initial": _peer("initial"),
    "sitk-affine": _peer("sitk_affine"),
    "demons": _peer("demons", start="sitk-affine"),
    "elastix-affine": _peer("elastix", stages=["affine"]),
    "elastix-bspline": _peer("elastix", stages=["affine", "bspline"]),
    "elastix-bending": _peer("elastix", stages=["affine", "bspline"], bending_weight=0.05),
    "syn": _peer("ants_syn"),
    "greedy": _peer("greedy"),
    "greedy-affine": _peer("greedy", stages=["affine"]),
    "convexadam-0.2.0": _peer("convex_adam", start="affine"),
    "plastimatch": _peer("plastimatch_bspline"),
    "deeds": _peer("deeds"),
    "niftyreg": _peer("niftyreg"),
}
"""Our peers. Those without an affine registration of their own begin with another's, if not with `@START`."""


class Methods:
    """The methods of a run, by name.

    Args:
        described: what the suite says of methods of its own or of peers' options.
        pythons: interpreter by method name, without its start, for peers that are installed elsewhere.
        settings: further settings by method name, without its start.
    """

    def __init__(
        self,
        described: Iterable[Mapping[str, Any]] = (),
        pythons: Mapping[str, str] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._described = {str(options["name"]): dict(options) for options in described}
        self._pythons = dict(pythons or {})
        self._settings = {name: dict(values) for name, values in (settings or {}).items()}

    def find(self, name: str) -> Method:
        """The method of a name.

        Raises:
            UsageError: if it asks for features or options that there are not.
        """
        base, _, start = name.partition("@")
        found = self._from_suite(base) if base in self._described else named(base)
        settings = {**found.settings, **self._settings.get(base, {})}
        if (start or found.start) == base:
            raise UsageError(f"method {base!r} cannot begin with itself")
        python = str(Path(self._pythons[base]).absolute()) if base in self._pythons else found.python
        return replace(found, name=name, settings=settings, python=python, start=start or found.start)

    def with_starts(self, names: Iterable[str]) -> list[str]:
        """The names, each preceded by the method that it starts from; every name once."""
        ordered: list[str] = []
        for name in names:
            start = self.find(name).start
            ordered += [*self.with_starts([start]), name] if start else [name]
        return list(dict.fromkeys(ordered))

    def _from_suite(self, name: str) -> Method:
        options = self._described[name]
        if unknown := sorted(options.keys() - OPTIONS):
            raise UsageError(
                f"method {name!r} has the unknown option {unknown[0]!r}; there are {', '.join(OPTIONS)}"
            )
        base = Method("", options["module"]) if "module" in options else named(options.get("method", name))
        return replace(
            base,
            settings={**base.settings, **options.get("settings", {})},
            start=options.get("start", base.start),
            python=options.get("python", base.python),
            limit_s=options.get("limit_s", base.limit_s),
        )


def named(name: str) -> Method:
    """A peer, or else a preset of this library; whether there is such a preset turns out when it runs.

    Raises:
        UsageError: for features that there are not.
    """
    if name in METHODS:
        return METHODS[name]
    preset, _, features = name.partition("+")
    if features and features not in FEATURES:
        raise UsageError(f"method {name!r}: no features {features!r}; there are {', '.join(FEATURES)}")
    return Method("", OURS, {"preset": preset} | ({"features": features} if features else {}))
