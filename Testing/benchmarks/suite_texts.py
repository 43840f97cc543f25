"""What the shipped suites say of themselves, which methods they run, and the published figures beside ours."""

from __future__ import annotations

from typing import Any

DESCRIPTIONS = {
    "openkbp_inter": "Head and neck CT of different patients with up to seven organs; 40 pairs of 20 subjects.",
    "chest_abdomen": "Chest and abdomen CT with little in common: one patient, and two.",
    "cbct_ct": "Abdominal cone-beam CT and CT of one patient, manual organs.",
    "breathing": "Two breathing phases of a 4D CT, landmarks.",
    "limbs": "CT and MR of limbs, moved by a known rigid offset.",
    "brain": "Simulated brain MR of one and of two contrasts under known transforms.",
    "features": "Presets on SAM alone, on MIND alone and on both joined.",
    "hard_starts": "Linear alignment of head and neck CT turned by 45 and 90 degrees, or cut to little in common.",
    "all": "Every suite of real volumes but `features` and `hard_starts`.",
}

OWN_TRACK = [
    "initial",
    "sitk-affine",
    "elastix-affine",
    "greedy-affine",
    "affine",
    "default",
    "samconvex",
    "samconvex-io",
    "message-passing",
    "elastix-bspline",
    "syn",
    "greedy",
    "plastimatch",
    "deeds",
    "niftyreg",
]
"""Everybody from the alignment in which the pair is found, with their own affine registration."""

SAME_TRACK = [
    "default@affine",
    "convexadam-0.2.0@affine",
    "demons@affine",
    "elastix-bspline@affine",
    "syn@affine",
    "greedy@affine",
    "plastimatch@affine",
    "deeds@affine",
    "niftyreg@affine",
]
"""Everybody from the affine that our preset `affine` finds."""

METHODS = [*OWN_TRACK, *SAME_TRACK]

MASKED_METHODS = [
    {"name": f"{peer}-masked", "method": peer, "settings": {"mask": "measured"}}
    for peer in ("elastix-bspline", "syn", "greedy")
]
"""Peers that are told where a cone-beam CT measured anything, in addition to running as they do elsewhere."""

FEATURE_METHODS = [
    "affine",
    "affine+mind",
    *(f"same-coarse+{features}" for features in ("sam", "mind", "both")),
    *(
        f"{preset}+{features}"
        for preset in ("samconvex", "samconvex-io", "default")
        for features in ("sam", "mind", "mind@affine", "both")
    ),
]
"""Presets by features. With MIND alone they run from their own alignment, by intensities, and from SAM's."""

START_METHODS = ["affine", "affine+mind", "sitk-affine"]


def _published(title: str, source: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    return {"title": title, "source": source, "columns": columns, "rows": rows}


REFERENCES: dict[str, list[dict[str, Any]]] = {
    "openkbp_inter": [
        _published(
            "Head and neck CT, 13 organs, after SAM-affine",
            "SAMConvex (MICCAI 2023)",
            ["method", "Dice %", "s (V100)"],
            [
                ["affine start", 33.91, ""],
                ["NiftyReg", 57.66, 186.5],
                ["Deeds", 61.32, 45.2],
                ["ConvexAdam", 61.45, 6.06],
                ["LapIRN", 60.16, 0.07],
                ["SAME", 61.35, 6.88],
                ["SAMConvex", 61.88, 2.12],
                ["SAMConvex + instance optimization", 63.72, 4.59],
            ],
        )
    ],
    "chest_abdomen": [
        _published(
            "Chest CT of different patients, 35 organs",
            "SAME (MICCAI 2021)",
            ["method", "Dice %", "s"],
            [
                ["elastix affine", 28.44, ""],
                ["SAM-affine", 33.80, 0.48],
                ["SyN", 49.75, ""],
                ["FFD", 49.36, ""],
                ["Deeds", 52.72, 45],
                ["SAME", 54.42, 1.16],
            ],
        )
    ],
    "cbct_ct": [
        _published(
            "ThoraxCBCT / OncoReg, test",
            "OncoReg challenge, as quoted in secondary literature",
            ["method", "Dice %", "TRE mm"],
            [
                ["ConvexAdam", 68.4, 4.93],
                ["NiftyReg", 62.1, 4.90],
                ["Deeds", 69.0, 8.76],
                ["DINO-Reg ensemble", 63.9, 3.94],
            ],
        )
    ],
    "breathing": [
        _published(
            "NLST validation, keypoints",
            "RWCNet and the Learn2Reg evaluator",
            ["method", "TRE mm"],
            [["initial", 9.73], ["LapIRN", 5.51], ["ConvexAdam", 1.48], ["RWCNet + instance optimization", 1.48]],
        ),
        _published(
            "DIR-Lab 4DCT",
            "pTVreg",
            ["method", "TRE mm", "s"],
            [["pTVreg", 0.92, 130]],
        ),
    ],
}
"""Other data and other hardware: they say what such methods reach, not who wins."""
