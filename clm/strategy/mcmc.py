"""3DGS-MCMC (Kheradmand et al. 2024, with the constants of gsplat's MCMCStrategy): a model of fixed size, out of core.

Rows that are dead (opacity at most 0.005) go where others live, and until the size is reached 5% are added each time. Where to
is drawn with replacement, by opacity, among the rows that live; a row that is drawn k times becomes k + 1, which together look
like it did. Dead rows and additions are drawn at once, where gsplat draws twice; moments of all of them begin anew. Noise and
regularisation, the rest of the method, are the optimizer's (`clm.optim.mcmc`).

The draw: each row is a Poisson process with its opacity as rate, and the first n arrivals of all of them together are n independent
draws by opacity. Arrivals follow the row's identity, so the choice depends neither on the order nor on the place of rows, and only
those that come before a time by which n must have come are held: about 20 bytes for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from clm.calendar import crossed
from clm.config import Config
from clm.event import Event
from clm.kernels import rows as row_kernels
from clm.kernels.grow import see_opacity
from clm.kernels.rows import AdamStep
from clm.store.growth import Growth, Rows
from clm.store.identity import child_keys, uniforms
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, LOG_SCALES, LOGIT_OPACITIES
from clm.store.store import Store
from clm.strategy.default import clear_statistics
from clm.strategy.strategy import AllRows, Rebuild, Relocated

ADDED = 1.05  # the size may become so many times as large at once
MOST_COPIES = 51  # for which opacity and scale are computed: beyond, as for so many (gsplat)
_SLACK = 1.2  # of the time by which enough arrivals are expected to have come
_OPACITIES = 0.005, 1.0 - 2.0**-23  # of a row that was relocated (gsplat: min_opacity, 1 - eps of float32)


class McmcStrategy:
    """As `clm.strategy.strategy.Strategy`."""

    def __init__(self, config: Config):
        self._config = config
        self.reason = (
            f"strategy: mcmc, towards {config.max_gaussians:,} Gaussians (--max-gaussians), which then stay as many"
        )
        self._until = 0.0  # time to which arrivals were needed last: where looking begins, which changes no result

    def due(self, before: int, now: int) -> bool:
        """Every `densify_every` images within (densify_from, densify_until]."""
        config = self._config
        return config.densify_from < now <= config.densify_until and crossed(config.densify_every, before, now)

    def counts(self, image: int) -> bool:
        return False

    def rebuild(self, rebuild: Rebuild, before: int, now: int) -> Iterator[Event]:
        store, config, all_rows = rebuild.store, self._config, rebuild.all_rows
        (rows,) = all_rows.totals(store.rows)
        more = max(0, min(rebuild.most_rows, int(ADDED * rows)) - rows)
        drawn = draw(store, rebuild.step, config.prune_opacity, more, now, self._until, all_rows)
        self._until = _SLACK * drawn.until
        pages = rebuild.apply(relocation(store, rebuild.step, drawn, now))
        clear_statistics(store)
        store.refresh(rebuild.step)  # entries bound the noise up to the next rebuild
        dead, copies, rows, pages = all_rows.totals(len(drawn.dead), drawn.copies, store.rows, pages)
        yield Relocated(now, dead, copies - dead, rows, pages)


@dataclass(frozen=True, eq=False)
class Drawn:
    """dead [D] i32: rows that go, ascending; rows [R] i32 ascending, keys [R] u64, times [R]: those that become so many more;
    until: of the last arrival that counted."""

    dead: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    times: np.ndarray
    until: float

    @property
    def copies(self) -> int:
        return int(self.times.sum())


def draw(
    store: Store,
    step: AdamStep | None,
    dead_opacity: float,
    more: int,
    image: int,
    until: float = 0.0,
    all_rows: AllRows = AllRows(),  # noqa: B008  (it has no state)
) -> Drawn:
    """As many of all rows by opacity, with replacement, as are dead after `step - 1`, and `more`: those of this store. until:
    where to begin looking."""
    while True:
        dead, weight, arrivals = _arrivals(store, step, dead_opacity, image, until)
        weight = float(all_rows.joined(np.array([weight])).sum())
        count, arrived = all_rows.totals(len(dead), len(arrivals.times))
        count += more
        if weight == 0.0:
            count, dead = 0, dead[:0]
        if arrived >= count:
            break
        until = max(_SLACK * until, (count + 6.0 * count**0.5 + 16.0) / weight)
    first = all_rows.first(count, arrivals.keys, arrivals.times)
    last = float(all_rows.joined(arrivals.times[first]).max(initial=0.0))
    rows, one, times = np.unique(arrivals.rows[first], return_index=True, return_counts=True)
    return Drawn(dead, rows, arrivals.keys[first][one], times, last)


@dataclass(frozen=True, eq=False)
class _Arrivals:
    """Of rows [n] i32 with keys [n] u64, at times [n] f64; a row may come more than once."""

    rows: np.ndarray
    keys: np.ndarray
    times: np.ndarray


def _arrivals(
    store: Store, step: AdamStep | None, dead_opacity: float, image: int, until: float
) -> tuple[np.ndarray, float, _Arrivals]:
    """Dead rows [D] i32; the opacity of all others together, to rounding; their arrivals before `until`."""
    limit = np.log(dead_opacity / (1.0 - dead_opacity))
    dead, weight = [np.zeros(0, np.int32)], 0.0
    found = [(np.zeros(0, np.int32), np.zeros(0, np.uint64), np.zeros(0))]
    for pages, held in store.sweep():
        frames = held.frames_of(pages)
        rows, logits, keys = see_opacity(held, step, held.keys, store.fill, store.page_rows, pages, frames)
        dead.append(rows[logits <= limit])
        lives = np.flatnonzero(logits > limit)
        rows, keys, rates = rows[lives], keys[lives], 1.0 / (1.0 + np.exp(-logits[lives].astype(np.float64)))
        weight += float(rates.sum())
        times, k = np.zeros(len(rows)), 0
        while len(rows):
            times = times - np.log1p(-uniforms(keys, image, k)) / rates
            soon = np.flatnonzero(times < until)
            rows, keys, rates, times, k = rows[soon], keys[soon], rates[soon], times[soon], k + 1
            found.append((rows, keys, times))
    return np.concatenate(dead), weight, _Arrivals(*(np.concatenate(column) for column in zip(*found, strict=True)))


def relocation(store: Store, step: AdamStep | None, drawn: Drawn, image: int) -> Growth:
    """Dead rows leave; a row that was drawn k times leaves, too, and k + 1 come from it."""
    each = (drawn.times + 1).astype(np.int32)
    parents, copies = np.repeat(drawn.rows, each), np.repeat(each, each)
    which = np.arange(len(parents), dtype=np.int32) - np.repeat(np.cumsum(each, dtype=np.int32) - each, each)
    keys = child_keys(np.repeat(drawn.keys, each), image, which.astype(np.uint64))

    def make(piece: slice) -> Rows:
        rows = parents[piece]
        made = Rows(*(np.empty((len(rows), columns), np.float32) for columns in (GEOMETRY_COLUMNS, COLOUR_COLUMNS)))
        for part, held, at in store.reach(rows):
            row_kernels.fetch(held, step, at, made.geometry[part], made.colour[part], COLOUR_COLUMNS)
        share(made.geometry, copies[piece])
        return made

    return Growth(np.union1d(drawn.dead, drawn.rows).astype(np.int32), parents, keys, make)


def share(geometry: np.ndarray, copies: np.ndarray) -> None:
    """Each of rows geometry [K, 12] becomes one of so many [K] copies of itself that together look like it (equation 9 of the
    paper, as gsplat's compute_relocation): o' = 1 - (1 - o)^(1/n), scales times o / sum_{j=1..n} C(n, j) (-1)^(j-1) o'^j /
    sqrt(j)."""
    n = np.minimum(copies, MOST_COPIES)
    opacity = 1.0 / (1.0 + np.exp(-geometry[:, LOGIT_OPACITIES].astype(np.float64)))
    with np.errstate(divide="ignore"):
        smaller = -np.expm1(np.log1p(-opacity) / n)
    total = np.zeros(len(n))
    for j in range(int(n.max(initial=0)), 0, -1):
        total = (total + _terms()[n, j]) * smaller
    geometry[:, LOG_SCALES] += np.log(opacity / total)[:, None].astype(np.float32)
    kept = np.clip(smaller, *_OPACITIES)
    geometry[:, LOGIT_OPACITIES] = np.log(kept / (1.0 - kept))


@cache
def _terms() -> np.ndarray:
    """C(n, j) (-1)^(j-1) / sqrt(j) at [n, j], 0 for j > n."""
    terms = np.zeros((MOST_COPIES + 1, MOST_COPIES + 1))
    for n in range(1, MOST_COPIES + 1):
        binomial = 1.0
        for j in range(1, n + 1):
            binomial *= (n - j + 1) / j
            terms[n, j] = binomial * (-1.0) ** (j - 1) / j**0.5
    return terms
