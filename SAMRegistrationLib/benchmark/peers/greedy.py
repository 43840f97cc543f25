"""Greedy (Yushkevich) by the package picsl_greedy: affine, or affine and greedy diffeomorphic deformation.

Setting (`stages`, `mask`): as its documentation advises: affine with normalized cross-correlation (radius 2
voxels) where contrasts agree and normalized mutual information where they differ, 100 x 50 x 20 iterations (a
rigid stage before made it worse). Twelve degrees of freedom run away now and then, by more than a meter or into
a mirror image: a map that halves or doubles volumes is done again rigidly. Then deformation with the same
metric, 100 x 50 x 20 iterations, gradients smoothed by 2 voxels and the field by 0.7 voxels. Its noise and its
jittered samples take the seed, and fields are written as they are instead of rounded to 0.1 voxels. Its metric
counts in the fixed volume's mask where the setting `mask` asks for one.
"""

from __future__ import annotations

import time

import numpy as np

from .contract import Matrix, NotInstalled, Outcome, Task
from .volumes import FLIP, read_matrix_file, written_mask, written_nonnegative

ITERATIONS = "100x50x20"
SMOOTHING = "2vox 0.7vox"
AFFINE, RIGID = 12, 6
"""Degrees of freedom."""

PLAUSIBLE_GROWTH = 0.5, 2.0
"""Of volumes, under a linear map between two bodies."""


def load() -> None:
    """Nothing else is needed than the package itself."""
    try:
        import picsl_greedy  # noqa: F401
    except ImportError as error:
        raise NotInstalled("Greedy is not installed: pip install picsl_greedy==1.4.0.3") from error


def register(task: Task) -> Outcome:
    """The requested stages; the affine one is skipped where a start is given."""
    from picsl_greedy import Greedy3D

    stages = task.settings.get("stages", ["affine", "deformable"])
    names = ("fixed", "moving")
    fixed, moving = (written_nonnegative(getattr(task, name), task.folder, name) for name in names)
    begin, affine = (task.folder / f"{name}.mat" for name in ("begin", "affine"))
    warp = task.folder / "warp.nii.gz"
    np.savetxt(begin, to_ras(task.begin), fmt="%.12g")
    metric = "NCC 2x2x2" if task.same_contrast else "NMI"
    # The seed 0 would be the clock.
    seed = task.seed % 2**31 + 1
    common = f"-d 3 -threads {task.threads} -seed {seed} -i {fixed} {moving} -n {ITERATIONS} -m {metric}"
    if mask := written_mask(task):
        common += f" -gm {mask}"
    greedy, seconds, dof = Greedy3D(), {}, 0
    if "affine" in stages and task.start is None:
        began = time.perf_counter()
        for dof in (AFFINE, RIGID):
            greedy.execute(f"{common} -a -dof {dof} -ia {begin} -o {affine}")
            if is_plausible(read_matrix_file(affine)):
                break
        seconds["affine"] = time.perf_counter() - began
    else:
        affine = begin
    matrix = from_ras(read_matrix_file(affine))
    settings = {"metric": metric, "dof": dof, "iterations": ITERATIONS, "smoothing": SMOOTHING}
    if "deformable" not in stages:
        return Outcome((matrix,), seconds, settings)
    began = time.perf_counter()
    greedy.execute(f"{common} -wp 0 -s {SMOOTHING} -it {affine} -o {warp}")
    seconds["deformable"] = time.perf_counter() - began
    return Outcome((warp, matrix), seconds, settings)


def is_plausible(matrix: Matrix) -> bool:
    """Whether a linear map neither mirrors nor shrinks or blows up what it maps."""
    least, most = PLAUSIBLE_GROWTH
    return bool(least <= np.linalg.det(matrix[:3, :3]) <= most)


def to_ras(matrix: Matrix) -> Matrix:
    """An LPS world matrix as Greedy reads it: RAS, from the fixed to the moving world."""
    return FLIP @ matrix @ FLIP


from_ras = to_ras
"""The way back is the same: two axes are flipped."""
