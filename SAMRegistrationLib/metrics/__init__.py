"""What a registration reached, in numbers: overlap, landmarks, smoothness, similarity, time and memory.

Accuracy and smoothness follow the definitions of the Learn2Reg challenge (A. Hering et al., "Learn2Reg:
comprehensive multi-task medical image registration challenge", 2023), which are given in array coordinates;
where world coordinates need another choice, the function says so.
"""

from __future__ import annotations

from .landmarks import cubic_sample, point_distances, relative_error, target_registration_error
from .overlap import (
    center_distance_per_label,
    common_labels,
    dice_per_label,
    hausdorff95_per_label,
    label_centers,
    labels_in,
    within,
)
from .resources import Stage, StageRecorder, device_peak_memory, peak_memory
from .similarity import (
    mutual_information,
    normalized_cross_correlation,
    root_mean_square_difference,
    similarity,
)
from .smoothness import (
    FieldQuality,
    field_quality,
    folded_percent,
    jacobian_determinant,
    non_diffeomorphic_volume,
    sdlogj,
    sdlogj_learn2reg,
)
from .summary import distribution, finite_mean, group_means, robust_value
from .surface import robust_hausdorff_distance

__all__ = [
    "FieldQuality",
    "Stage",
    "StageRecorder",
    "center_distance_per_label",
    "common_labels",
    "cubic_sample",
    "device_peak_memory",
    "dice_per_label",
    "distribution",
    "field_quality",
    "finite_mean",
    "folded_percent",
    "group_means",
    "hausdorff95_per_label",
    "jacobian_determinant",
    "label_centers",
    "labels_in",
    "mutual_information",
    "non_diffeomorphic_volume",
    "normalized_cross_correlation",
    "peak_memory",
    "point_distances",
    "relative_error",
    "robust_hausdorff_distance",
    "robust_value",
    "root_mean_square_difference",
    "sdlogj",
    "sdlogj_learn2reg",
    "similarity",
    "target_registration_error",
    "within",
]
