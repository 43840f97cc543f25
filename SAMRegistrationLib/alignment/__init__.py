"""Linear alignment without a start: embeddings or intensities, robustly, with a verdict."""

from .align import Alignment, agreement, align, from_matches, improved_on_same_body, judge

__all__ = ["Alignment", "agreement", "align", "from_matches", "improved_on_same_body", "judge"]
