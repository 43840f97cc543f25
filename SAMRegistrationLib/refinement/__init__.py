"""Correcting a registration by hand: boxes and landmarks (T. Bai et al., "Region specific optimization", 2022).

The workflow of the paper has three steps: a general result (`register` with any preset, or a network), then
image-specific optimization of the whole pair, then region-specific optimization of boxes that a person draws. A
refinement never touches the accepted map: it is a small correction that is applied before it, so that everything
outside stays as it was and every step can be taken back.

>>> result = register("fixed.nii.gz", "moving.nii.gz")
>>> better = refine(result, regions=[read_roi("tumor.mrk.json")])
"""
