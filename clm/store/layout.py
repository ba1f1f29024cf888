"""Columns of a row in memory: geometry (11 floats and 31 bits of identity) and colour (48 floats); names carry their activation."""

from __future__ import annotations

from clm.kernels import numbers

GEOMETRY_COLUMNS = numbers.GEOMETRY
COLOUR_COLUMNS = numbers.COLOUR
GRAD_GEOMETRY_COLUMNS = numbers.GRAD_GEOMETRY

MEANS = slice(0, 3)  # world units, world frame
QUATS = slice(3, 7)  # wxyz, any norm
LOG_SCALES = slice(7, 10)  # natural log of the standard deviation in world units
LOGIT_OPACITIES = 10
IDENTITY = 11  # bits of the row's key, no parameter (clm.store.identity)

SH0 = slice(0, 3)  # colour = 0.5 + SH_C0 * sh0
SHN = slice(3, COLOUR_COLUMNS)  # [15, 3] coefficient-major, as gsplat's shN

GRAD_DRAWN = numbers.GRAD_DRAWN  # geometry gradient column: number of views that drew the row
STATISTICS = slice(
    GRAD_DRAWN, GRAD_DRAWN + numbers.STATISTICS
)  # geometry gradient columns that a store adds up per row
GRAD_SCREEN = GRAD_DRAWN + 1  # one of them: sum over views of screen-space gradient norms
GRAD_PIXELS = GRAD_DRAWN + 2  # one of them: sum over views of the pixels that the row explains (alpha T over pixels)
GRAD_SQUARES = GRAD_DRAWN + 3  # one of them: the same of their squares

GROUPS = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")
SH_C0 = 0.28209479177387814

PAGE_ROWS = 2048
CHUNK_ROWS = 1 << 16  # rows held at once while a model streams through memory
EXTENT_SIGMAS = numbers.SIGMAS
