"""Host Adam against the machine's limit: ns per row and bytes/s of the row kernel on block runs and on scattered rows,
with float32 and with bf16 moments in turn, next to an in-place read+write pass over as many bytes with the same threads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count

import numpy as np
from bench_common import header

from clm import kernels
from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.plan.budget import CULL_BYTES, GRADIENT_BYTES, MOMENT_BYTES, store_row_bytes
from clm.store.layout import GRAD_DRAWN, PAGE_ROWS
from clm.store.store import Store
from clm.stream.parking import GradientBuffer


def row_traffic(moments: str) -> int:
    """Bytes one row moves: all of the store's row read and written, but the cull entry only written; the gradient read."""
    return 2 * (store_row_bytes(moments) - CULL_BYTES) + GRADIENT_BYTES + CULL_BYTES


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stepper(rows: int, touched: int, moments: str) -> Callable[[np.ndarray], None]:
    """A function that takes an Adam step on `touched` row ids of a new store; between two calls one step is missed, so
    that every row is also caught up."""
    store, steps = Store(rows, moments=moments), count(2, 2)
    store.append(np.full((rows, 12), 0.1, np.float32), np.full((rows, 48), 0.1, np.float32))
    adam = Adam(np.full((6, 2000), 1e-3), Betas.for_batch(4))
    gradients, entries = GradientBuffer(touched), np.empty((touched, 4), np.float32)
    gradients.grad_geometry[:], gradients.grad_colour[:] = 1e-4, 1e-4
    gradients.grad_geometry[:, GRAD_DRAWN] = 1

    def step(ids: np.ndarray) -> None:
        row_kernels.adam(store, adam.at(next(steps), 4), ids, gradients, None, 48, store.statistics, entries)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--share", type=float, default=0.25, help="share of rows that one batch touches")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(header())
    rng = np.random.default_rng(0)
    blocks = np.sort(rng.permutation(args.rows // PAGE_ROWS)[: int(args.share * args.rows / PAGE_ROWS)])
    runs = (blocks[:, None] * PAGE_ROWS + np.arange(PAGE_ROWS)).ravel().astype(np.int32)
    patterns = {
        "block runs": runs,
        "scattered rows": np.sort(rng.permutation(args.rows)[: len(runs)]).astype(np.int32),
    }
    steppers = {moments: stepper(args.rows, len(runs), moments) for moments in MOMENT_BYTES}
    plain = np.ones(len(runs) * row_traffic("f32") // 8, np.float32)  # as many bytes, each read once and written once
    limit = 2 * plain.nbytes / np.median([seconds(lambda: row_kernels.touch(plain)) for _ in range(args.repeats)])
    print(f"in-place read+write pass, {kernels.get_threads()} threads: {limit / 1e9:.1f} GB/s")
    for name, rows in patterns.items():
        print(f"Adam on {name} ({len(rows):,} of {args.rows:,} rows):")
        times: dict[str, list[float]] = {moments: [] for moments in steppers}
        for repeat in range(args.repeats + 1):
            for moments, step in steppers.items():
                took = seconds(lambda step=step, rows=rows: step(rows))
                times[moments] += [took] if repeat else []  # the first touches fresh pages
        for moments, taken in times.items():
            each = float(np.median(taken)) / len(rows)
            rate, slower = row_traffic(moments) / each, each * len(rows) / float(np.median(times["f32"]))
            print(
                f"  {moments:5} {each * 1e9:6.1f} ns/row, {slower:.2f} of f32; {row_traffic(moments)} B/row: "
                f"{rate / 1e9:.1f} GB/s, {rate / limit:.2f} of the pass"
            )


if __name__ == "__main__":
    main()
