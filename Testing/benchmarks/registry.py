"""Methods by name: `NAME` or `NAME@START`, where START is the method whose affine result it begins with."""

from __future__ import annotations

from dataclasses import dataclass

from .method import Method
from .ours import Preset
from .peers.convex_adam import ConvexAdam
from .peers.initial import Initial
from .peers.sitk_affine import SitkAffine

PEERS: dict[str, type[Method]] = {peer.name: peer for peer in (Initial, SitkAffine, ConvexAdam)}


@dataclass(frozen=True)
class MethodChoice:
    """A method together with the one that it starts from, if any."""

    name: str
    method: Method
    start: str | None


def find_method(name: str) -> MethodChoice:
    """The method of a name; whatever is no peer is taken for a preset of this library."""
    base, _, start = name.partition("@")
    method = PEERS[base]() if base in PEERS else Preset(base)
    return MethodChoice(name, method, start or method.default_start)


def with_starts(names: list[str]) -> list[str]:
    """The names, each preceded by the method that it starts from; every name once."""
    ordered: list[str] = []
    for name in names:
        start = find_method(name).start
        ordered += [start, name] if start else [name]
    return list(dict.fromkeys(ordered))
