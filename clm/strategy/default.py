"""Default densification (split, prune, opacity reset): its calendar, and decisions that read the store and change nothing.

Thresholds: gsplat's DefaultStrategy and Kerbl et al. 2023, section 5; a row that grows becomes two halves along its longest
axis. Only rows that were drawn since the last growth are looked at, as they are after all steps so far, without settling them:
which rows these are and what becomes of them are functions of the rows and their identities, never of where they lie. New
rows start with zero moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from clm.calendar import crossed
from clm.camera import Camera
from clm.config import Config
from clm.event import Event
from clm.kernels import rows as row_kernels
from clm.kernels.grow import see_drawn
from clm.kernels.rows import AdamStep
from clm.store.arrays import RowArrays
from clm.store.growth import Growth, Rows
from clm.store.identity import child_keys
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, LOGIT_OPACITIES
from clm.store.store import Store
from clm.strategy.halves import LONGEST, halve
from clm.strategy.strategy import AllRows, Cleared, Densified, OpacityReset, Rebuild
from clm.strategy.vouched import EPOCHS, clearings, unvouched, views_that_count, without


@dataclass(frozen=True)
class Thresholds:
    """Units: screen gradient in half image sizes, scales in world units, opacity in [0, 1]."""

    screen_gradient: float
    prune_opacity: float
    prune_scale: float | None  # None: large rows are kept
    evidence: float = 0.0  # pixels that pairs of views share, over an epoch; 0: none is needed
    epochs: float = 1.0  # that statistics are of


class DefaultStrategy:
    """As `clm.strategy.strategy.Strategy`."""

    reason = ""

    def __init__(self, config: Config, scene_scale: float, cameras: Sequence[Camera]):
        """cameras: of the views that are trained on."""
        self._config, self._scale, self._cameras, self._views = config, scene_scale, cameras, len(cameras)
        asked = config.prune_views > 0 and config.grow_evidence > 0 and config.densify_until > 0
        self._clearings = clearings(config.densify_until, config.iterations, self._views) if asked else ()

    def due(self, before: int, now: int) -> bool:
        return self._densify_due(before, now) or self._reset_due(before, now) or self._clear_due(before, now)

    def counts(self, image: int) -> bool:
        asked = any(at - EPOCHS * self._views < image <= at for at in self._clearings)
        return asked or (self._config.grow_evidence > 0 and image <= self._config.densify_until)

    def rebuild(self, rebuild: Rebuild, before: int, now: int) -> Iterator[Event]:
        store, config = rebuild.store, self._config
        if self._densify_due(before, now):
            most, all_rows = rebuild.most_rows, rebuild.all_rows
            decision = decide(store, rebuild.step, self._thresholds(now), most, now, all_rows)
            pages = rebuild.apply(decision.growth)
            clear_statistics(store)
            done = decision.split, decision.pruned, decision.unproven
            split, pruned, unproven, rows, pages = all_rows.totals(*done, store.rows, pages)
            yield Densified(now, split, pruned, decision.refused, rows, pages, unproven)
        if self._reset_due(before, now):
            reset_opacity(store, rebuild.step, config.reset_opacity)
            rebuild.everything()
            yield OpacityReset(now)
        if self._clear_due(before, now):
            yield self._clear(rebuild, before, now)

    def _clear(self, rebuild: Rebuild, before: int, now: int) -> Cleared:
        store, all_rows = rebuild.store, rebuild.all_rows
        first = before < self._clearings[0]  # whose statistics begin with the end of growth
        epochs = (now - self._last_densified) / self._views if first else EPOCHS
        unseen, edges = unvouched(store, rebuild.step, self._cameras, epochs, self._config.prune_views, now, all_rows)
        pages = rebuild.apply(without(np.union1d(unseen, edges)))
        clear_statistics(store)
        return Cleared(now, *all_rows.totals(len(unseen), len(edges), store.rows, pages))

    def _densify_due(self, before: int, now: int) -> bool:
        """Every `densify_every` images within (densify_from, densify_until]."""
        config = self._config
        return config.densify_from < now <= config.densify_until and crossed(config.densify_every, before, now)

    def _reset_due(self, before: int, now: int) -> bool:
        """Only while densification may still prune what stays transparent."""
        return now < self._config.densify_until and crossed(self._config.opacity_reset_every, before, now)

    @property
    def _last_densified(self) -> int:
        """Image of the last densification, or 0."""
        size = self._config.batch_size_at(0)  # while rows come and go
        last = self._config.densify_until // size * size
        while last > 0 and not self._densify_due(last - size, last):
            last -= size
        return last

    def _clear_due(self, before: int, now: int) -> bool:
        return any(before < at <= now for at in self._clearings)

    def _window(self, now: int) -> int:
        """Images that the statistics are of: since the last densification, or, before the first, since the beginning."""
        every, due = self._config.densify_every, now // self._config.densify_every
        last = (due - 1) * every
        return every if last > self._config.densify_from else due * every

    def _thresholds(self, now: int) -> Thresholds:
        config, scale = self._config, self._scale
        after_reset = 0 < config.opacity_reset_every < now
        return Thresholds(
            screen_gradient=config.grow_screen_gradient,
            prune_opacity=config.prune_opacity,
            prune_scale=config.prune_scale * scale if after_reset else None,
            evidence=config.grow_evidence,
            epochs=self._window(now) / self._views,
        )


@dataclass(frozen=True)
class Decision:
    """A growth of a store, and what it does in rows. refused: of all rows, wanted to grow, but the limit said no. unproven:
    wanted to grow, but too little of them is seen from more than one place."""

    growth: Growth
    split: int
    pruned: int
    refused: int
    unproven: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows that were drawn since the last growth: ids [n] i32 ascending, mean screen gradient [n] f32, largest log-scale and
    logit of opacity as they are now [n] f32, keys [n] u64, sums over views of their pixels and of the squares [n] f32."""

    rows: np.ndarray
    gradient: np.ndarray
    log_scale: np.ndarray
    logit_opacity: np.ndarray
    keys: np.ndarray
    pixels: np.ndarray
    squares: np.ndarray


def drawn_rows(store: Store, step: AdamStep | None) -> Iterator[Drawn]:
    """The rows of seen pages that were drawn, caught up to `step - 1`, a few pages at a time; the store is not changed."""
    for pages, held in store.sweep(np.flatnonzero(store.seen)):
        frames = held.frames_of(pages)
        yield Drawn(*see_drawn(held, step, held.statistics, held.keys, store.fill, store.page_rows, pages, frames))


def evidence(pixels: np.ndarray, squares: np.ndarray, epochs: float) -> np.ndarray:
    """Pixels of a row that pairs of views share, over one epoch, [n] f64: what holds it where it is.

    A row that n views see, v pixels of it each, has n (n - 1) v: one view says nothing about depth, and each further one can be
    compared with all others. pixels, squares [n]: sums of v and of v^2 over the views of so many epochs; n = pixels^2 / squares,
    the number of views that count. Of a part of an epoch pairs are as rare as its square.
    """
    total, views = pixels.astype(np.float64), views_that_count(pixels, squares)
    if epochs >= 1:
        return np.asarray(total / epochs * np.maximum(views / epochs - 1.0, 0.0))
    return np.asarray(total * np.maximum(views - 1.0, 0.0) / epochs**2)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Drawn rows of which something becomes, by id: rows [n] i32, keys [n] u64, gradient [n] f32; which go, want to grow,
    and are proven, so that they may [n] bool."""

    rows: np.ndarray
    keys: np.ndarray
    gradient: np.ndarray
    goes: np.ndarray
    wants: np.ndarray
    proven: np.ndarray

    @staticmethod
    def of(drawn: Drawn, thresholds: Thresholds) -> _Candidates:
        goes = drawn.logit_opacity < np.log(thresholds.prune_opacity / (1.0 - thresholds.prune_opacity))
        hopeless = goes.copy()  # its children would go, too
        if thresholds.prune_scale is not None:
            goes |= drawn.log_scale > np.log(thresholds.prune_scale)
            hopeless |= drawn.log_scale + np.log(LONGEST) > np.log(thresholds.prune_scale)
        wants = (drawn.gradient > thresholds.screen_gradient) & ~hopeless
        proven = evidence(drawn.pixels, drawn.squares, thresholds.epochs) >= thresholds.evidence
        some = np.flatnonzero(goes | wants)
        columns = drawn.rows, drawn.keys, drawn.gradient, goes, wants, proven
        return _Candidates(*(column[some] for column in columns))

    @staticmethod
    def joined(parts: list[_Candidates]) -> _Candidates:
        if not parts:
            nothing, none = np.zeros(0, np.int32), np.zeros(0, bool)
            return _Candidates(nothing, nothing.astype(np.uint64), nothing.astype(np.float32), none, none, none)
        return _Candidates(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Candidates)))


def decide(
    store: Store,
    step: AdamStep | None,
    thresholds: Thresholds,
    max_rows: int,
    image: int,
    all_rows: AllRows = AllRows(),  # noqa: B008  (it has no state)
) -> Decision:
    """What is split and pruned after training image `image`, so that at most `max_rows` of all rows remain (those whose
    gradient is strongest grow, of equal ones the one with the smaller key)."""
    found = _Candidates.joined([_Candidates.of(drawn, thresholds) for drawn in drawn_rows(store, step)])
    wants, unproven = np.flatnonzero(found.wants & found.proven), int((found.wants & ~found.proven).sum())
    rows, wanted = all_rows.totals(store.rows, len(wants))
    allowed = max(max_rows - rows, 0)
    refused = max(0, wanted - allowed)
    if refused:
        wants = wants[all_rows.first(allowed, found.keys[wants], -found.gradient[wants])]
    grows = np.zeros(len(found.rows), bool)
    grows[wants] = True
    leave = found.rows[found.goes | grows]
    growth = _growth(store, step, leave, found.rows[grows], found.keys[grows], image)
    pruned = int((found.goes & ~grows).sum())
    return Decision(growth, int(grows.sum()), pruned, refused, unproven)


def _growth(
    store: Store,
    step: AdamStep | None,
    leave: np.ndarray,
    growing: np.ndarray,
    growing_keys: np.ndarray,
    image: int,
) -> Growth:
    """Rows `growing` [G], which have these keys [G], are split."""
    parents, which = np.repeat(growing, 2), np.tile(np.arange(2, dtype=np.uint64), len(growing))
    keys = child_keys(np.repeat(growing_keys, 2), image, which)
    room = Rows(np.empty((0, GEOMETRY_COLUMNS), np.float32), np.empty((0, COLOUR_COLUMNS), np.float32))

    def make(piece: slice) -> Rows:
        nonlocal room
        rows = parents[piece]
        if len(rows) > len(room.geometry):  # kept: memory that is new each time is cleared by the system each time
            room = Rows(*(np.empty((len(rows) * 5 // 4, array.shape[1]), np.float32) for array in room))
        made = Rows(*(array[: len(rows)] for array in room))
        for part, held, at in store.reach(rows):
            row_kernels.fetch(held, step, at, made.geometry[part], made.colour[part], COLOUR_COLUMNS)
        halve(made.geometry, which[piece] == 1)
        return made

    return Growth(leave, parents, keys, make)


def clear_statistics(store: Store) -> None:
    """The drawn rows were looked at: their statistics begin anew."""
    pages = np.flatnonzero(store.seen)
    store.changed[pages] = True
    store.arrays.clear_statistics(pages)
    store.seen[:] = False


def reset_opacity(store: Store, step: AdamStep, ceiling: float) -> None:
    """Opacities above `ceiling` are set to it, and the opacity moments of every row start anew: the one operation that reaches
    every row. Rows are settled as of `step - 1`, cull entries and bounds follow."""
    limit = np.float32(np.log(ceiling / (1.0 - ceiling)))

    def reset(held: RowArrays, at: np.ndarray) -> None:
        held.geometry[at, LOGIT_OPACITIES] = np.minimum(held.geometry[at, LOGIT_OPACITIES], limit)
        held.m_geometry[at, LOGIT_OPACITIES] = 0
        held.v_geometry[at, LOGIT_OPACITIES] = 0

    store.settle(step, reset)
