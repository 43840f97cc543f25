"""Displacement solvers: feature tensors in, displacement tensors out.

Everything here works on plain tensors in voxels of one level and knows nothing of spacing or world space:
volumes are (1, C, z, y, x), displacements u are float32 (1, 3, z, y, x) with components (x, y, z), and the fixed
voxel x corresponds to the moving position x + u(x). Voxel centers are integers, borders repeat.
"""
