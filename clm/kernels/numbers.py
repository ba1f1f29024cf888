"""Numbers that Python and C++ share. `tests/kernels/test_faces.py` compares them with those that the kernels were built with."""

from __future__ import annotations

GEOMETRY = 12  # floats of a row: means, quats, log_scales, logit_opacities, padding
COLOUR = 48  # floats: sh0, shN
GRAD_GEOMETRY = 16  # floats of a gradient row's geometry part
GRAD_DRAWN = 11  # its first column that is no gradient: here begin the statistics, which add up over views
STATISTICS = 4  # views that drew the row, norms of the screen gradient, pixels, squares of a view's pixels
SIGMAS = 3.33  # the rasteriser draws no farther out (RASTER.md 4)
BLUR = 0.3  # px^2 on the diagonal of every projected covariance (RASTER.md 3)
ALPHA_MIN, ALPHA_MAX = 1.0 / 255.0, 0.999  # of one Gaussian at a pixel
TRANSMITTANCE_MIN = 1e-4  # a pixel is full below
TILE = 16  # px
CAMERA_FLOATS = 32  # of a camera to cull with: six planes of four, |t|_1, padding
CULL_SLACK = 2e-6  # of |p|_1 + |t|_1: rounding of a plane's value
