"""Points of one volume found again in another by the likeness of their feature vectors.

A vector says where in the body its voxel is, so the partner is the voxel with the greatest dot product, wherever
it lies: no prior alignment is needed (Yan et al. 2022, section III-D; SAME, section 2.1). `match_points` takes
every point for itself; `match_structurally` also asks what lies around it, which is more accurate.
"""

from .consensus import Consensus
from .index import FeatureIndex, query_vectors
from .kept import index_kept, indexed
from .likeness_map import likeness_map
from .nearest import Matches, match_points, require_embeddings, stable_matches
from .peak import peak_offset
from .structural import StructuralMatches, match_structurally

__all__ = [
    "Consensus",
    "FeatureIndex",
    "Matches",
    "StructuralMatches",
    "index_kept",
    "indexed",
    "likeness_map",
    "match_points",
    "match_structurally",
    "peak_offset",
    "query_vectors",
    "require_embeddings",
    "stable_matches",
]
