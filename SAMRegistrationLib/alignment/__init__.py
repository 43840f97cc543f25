"""Linear alignment without a start: embeddings or intensities, robustly, with a verdict."""

from .align import Alignment, align, judge

__all__ = ["Alignment", "align", "judge"]
