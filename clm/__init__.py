"""clm: trains 3D Gaussian Splatting scenes that do not fit in GPU memory."""

__version__ = "0.1.0"
