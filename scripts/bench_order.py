"""Prints how long the first ordering of rows takes, and the memory beside the cull entries.

Rows are uniform in a cube with radii spread over three orders of magnitude.

    python scripts/bench_order.py [--rows 32] [--threads 2] [--repeats 3]      (millions of rows)
"""

from __future__ import annotations

import argparse
import datetime
import platform
import resource
import statistics
from time import perf_counter

import numpy as np

from clm import kernels
from clm.store.order import block_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=float, default=32, help="millions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    kernels.set_threads(asked.threads)
    rows = int(asked.rows * 1e6)
    rng = np.random.default_rng(0)
    entries = rng.random((rows, 4), np.float32)
    for first in range(0, rows, 1 << 20):
        piece = slice(first, first + (1 << 20))
        entries[piece, 3] = 0.01 * np.exp(rng.standard_normal(len(entries[piece]), np.float32))
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(asked.repeats):
        began = perf_counter()
        order = block_order(entries)
        seconds.append(perf_counter() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert len(order) == rows
    print(f"{datetime.date.today()}, {platform.machine()}, {kernels.variant()}, {asked.threads} threads")
    print(f"{rows:,} rows ordered in {statistics.median(seconds):.2f} s (median of {asked.repeats}: ", end="")
    print(", ".join(f"{s:.2f}" for s in seconds) + f"), {peak / rows:.0f} bytes a row beside the cull entries")


if __name__ == "__main__":
    main()
