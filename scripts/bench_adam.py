"""Host Adam against the machine's limit: bytes/s of the row kernel on block runs and on scattered rows, next to an
in-place read+write pass over arrays of the same size, all in one run with the same threads."""

from __future__ import annotations

import argparse
import time

import numpy as np
from bench_common import header

from clm import kernels
from clm.gaussians.layout import BLOCK_ROWS, GRAD_DRAWN
from clm.gaussians.store import Store
from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.stream.parking import GradientBuffer

# Read and written: parameters, both moments, stamp, statistics. Read once: the gradient row. Written once: the cull entry.
ROW_BYTES = 2 * (240 + 480 + 4 + 8) + 256 + 16


def median_seconds(work, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--share", type=float, default=0.25, help="share of rows that one batch touches")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(header())
    rng = np.random.default_rng(0)
    store = Store(args.rows)
    store.append(np.full((args.rows, 12), 0.1, np.float32), np.full((args.rows, 48), 0.1, np.float32))
    adam = Adam(np.full((6, 2000), 1e-3), Betas.for_batch(4))
    blocks = np.sort(rng.permutation(args.rows // BLOCK_ROWS)[: int(args.share * args.rows / BLOCK_ROWS)])
    runs = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel().astype(np.int32)
    patterns = {
        "block runs": runs,
        "scattered rows": np.sort(rng.permutation(args.rows)[: len(runs)]).astype(np.int32),
    }
    gradients = GradientBuffer(len(runs))
    gradients.grad_geometry[:], gradients.grad_colour[:] = 1e-4, 1e-4
    gradients.grad_geometry[:, GRAD_DRAWN] = 1
    entries = np.empty((len(runs), 4), np.float32)
    step = 0

    def one_step(rows: np.ndarray) -> None:
        nonlocal step
        step += 2  # one step in between is missed, so that every row is also caught up
        row_kernels.adam(store, adam.at(step, 4), rows, gradients, None, 48, store.statistics, entries)

    plain = np.ones(len(runs) * ROW_BYTES // 8, np.float32)  # as many bytes, each read once and written once
    limit = 2 * plain.nbytes / median_seconds(lambda: row_kernels.touch(plain), args.repeats)
    print(f"in-place read+write pass, {kernels.get_threads()} threads: {limit / 1e9:.1f} GB/s")
    for name, rows in patterns.items():
        one_step(rows)
        rate = len(rows) * ROW_BYTES / median_seconds(lambda rows=rows: one_step(rows), args.repeats)
        print(
            f"Adam on {name} ({len(rows):,} of {args.rows:,} rows): {rate / 1e9:.1f} GB/s, {rate / limit:.2f} of the pass"
        )


if __name__ == "__main__":
    main()
