"""What stands in for CUDA and for gsplat's kernels where there is neither, and small random scenes: for tests and scripts."""
