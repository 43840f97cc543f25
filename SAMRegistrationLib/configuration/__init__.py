"""The preset `auto`: which preset, features, levels and search range suit two volumes, and why."""

from .choice import Choice, choose, lacking_memory
from .decision import usual_preset

__all__ = ["Choice", "choose", "lacking_memory", "usual_preset"]
