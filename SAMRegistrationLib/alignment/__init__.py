"""Linear alignment without a start: embeddings or intensities, robustly, with a verdict."""

from .align import Alignment, agreement, align, from_matches, improved_on_same_body, judge
from .placed_features import PlacedFeatures

__all__ = ["Alignment", "PlacedFeatures", "agreement", "align", "from_matches", "improved_on_same_body", "judge"]
