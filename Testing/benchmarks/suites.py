"""Which methods a suite is about, unless others are asked for."""

from __future__ import annotations

from SAMRegistrationLib.presets import preset_names

FEATURE_METHODS = (
    "affine",
    "affine+mind",
    *(f"same-coarse+{features}" for features in ("sam", "mind", "both")),
    *(
        f"{preset}+{features}"
        for preset in ("samconvex", "samconvex-io", "default")
        for features in ("sam", "mind", "mind@affine", "both")
    ),
)
"""Presets by features. With MIND alone they run from their own alignment, by intensities, and from SAM's."""

START_METHODS = ("affine", "affine+mind", "sitk-affine")


def default_methods(suite: str, family: str) -> tuple[str, ...]:
    """What to run on the pairs of a family."""
    if family.startswith("starts_"):
        return START_METHODS
    if suite in ("features", "issue3"):
        return FEATURE_METHODS
    return ("initial", "sitk-affine", *preset_names(), "convexadam-0.2.0")
