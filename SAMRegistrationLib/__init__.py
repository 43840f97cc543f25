"""Registration of medical volumes by self-supervised anatomical embeddings.

The names below are loaded on first use, so that importing the package costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AffineTransform": "transforms",
    "CompositeTransform": "transforms",
    "DisplacementField": "field",
    "Grid": "grid",
    "Image": "image",
    "LandmarkPairs": "refinement.landmarks",
    "PointSet": "points",
    "RegionOfInterest": "roi",
    "RegionRequest": "refinement.regions",
    "RegistrationResult": "pipeline",
    "read_image": "image_io",
    "read_labels": "image_io",
    "read_roi": "roi",
    "read_transform": "transform_io",
    "refine": "refinement.refine",
    "register": "pipeline",
    "write_image": "image_io",
    "write_transform": "transform_io",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
