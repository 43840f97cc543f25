"""How much is worked on at once, which memory and caches decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AtOnce:
    """For a processor, whose cache holds few, and for other devices, which are slow at being told to begin."""

    cpu: int
    elsewhere: int

    def on(self, device: torch.device) -> int:
        """The number for a device."""
        return self.cpu if device.type == "cpu" else self.elsewhere
