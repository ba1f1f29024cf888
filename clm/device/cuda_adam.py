"""Deferred Adam in torch, on whatever device the rows are: the mathematics of `clm/kernels/src/rows.cpp` for resident rows.

Rows are the store's, index tensors say which. Nothing waits for the device: rows that no view drew are carried through the
arithmetic with neutral coefficients instead of being picked out, and get back exactly what they had. Nothing is allocated
either: a step that ran out of memory half-way could not be repeated, because some of its rows would have moved. Hence every
operation writes to a `Workspace`, which bounds the rows that are worked on at a time. The tables: `clm/device/cuda_tables.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clm.device.cuda_stir import PULLED, DeviceStir, Missed, add_noise, noise_reach, pull_of, step_variance, stir
from clm.device.cuda_tables import DeviceStep
from clm.device.workspace import Workspace
from clm.store.layout import EXTENT_SIGMAS, GRAD_DRAWN, GROUPS, LOG_SCALES, MEANS, STATISTICS

_PARAMETERS = 11  # columns of geometry that are parameters; the twelfth is padding, in a gradient row a count


class DeviceStore(Protocol):
    """Rows on the device: parameters and moments [N, 12] and [N, 48] f32, stamp [N] i32 (step of the last update)."""

    geometry: Tensor
    colour: Tensor
    m_geometry: Tensor
    v_geometry: Tensor
    m_colour: Tensor
    v_colour: Tensor
    stamp: Tensor


class DeviceGradients(Protocol):
    """A place that holds gradient rows: grad_geometry [n, 16], grad_colour [n, 48] f32."""

    grad_geometry: Tensor
    grad_colour: Tensor


@dataclass(frozen=True)
class _Behind:
    """The missed steps of k rows, in closed form."""

    drift: Tensor  # [k, 6] f32
    eps: Tensor  # [k, 1] f32
    missed: Tensor  # [k] i64
    stamp: Tensor  # [k] i64


def _behind(work: Workspace, step: DeviceStep, stamp: Tensor) -> _Behind:
    """What rows with these stamps [k] i32 missed up to `step - 1`.

    A row that missed nothing needs no case of its own: its drift is exactly 0, its powers are 1, and eps cancels. Nor does one
    that never had a gradient (stamp 0): its moments are zero.
    """
    k = len(stamp)
    stamp = work.copied(stamp, torch.int64)
    missed = torch.neg(stamp, out=work.take(k, dtype=torch.int64)).add_(step.step - 1)
    rounded = work.take(k, len(GROUPS))
    with work.part():
        # The difference cancels digits: it is taken in float64 and only then rounded.
        drift, power = work.select(step.drift, stamp), work.select(step.ratio_power, missed)
        later = torch.mul(power[:, None], step.drift[step.step - 1], out=work.take(k, len(GROUPS), dtype=torch.float64))
        rounded.copy_(drift.sub_(later))
    return _Behind(rounded, work.select(step.eps_drift, stamp)[:, None], missed, stamp)


@torch.no_grad()
def fetch_rows(
    store: DeviceStore,
    step: DeviceStep | None,
    rows: Tensor,
    geometry: Tensor,
    colour: Tensor,
    columns: int,
    slots: Tensor | None = None,
    work: Workspace | None = None,
) -> None:
    """Catch rows [M] up to `step - 1` and copy them to geometry/colour at slots [M] (None: positions 0..M-1).

    rows, slots: i32 or i64, unique. step None: copied as they are. The store is not changed. As `clm.kernels.rows.fetch`.
    work None: one that goes with the call.
    """
    work = work or Workspace(len(rows), rows.device)
    for first in range(0, len(rows), work.rows):
        part = slice(first, first + work.rows)
        with work.part():
            ids = work.copied(rows[part], torch.int64)
            new_geometry = work.select(store.geometry, ids)
            new_colour = work.select(store.colour[:, :columns], ids)
            if step is not None:
                _catch_up(work, store, step, ids, new_geometry, new_colour)
            at = None if slots is None else work.copied(slots[part], torch.int64)
            for target, values in ((geometry, new_geometry), (colour[:, :columns], new_colour)):
                if at is None:
                    target[part].copy_(values)
                else:
                    target.index_copy_(0, at, values)


def _catch_up(
    work: Workspace, store: DeviceStore, step: DeviceStep, ids: Tensor, geometry: Tensor, colour: Tensor
) -> None:
    """Move copies of the rows `ids`, geometry [k, 12] and colour [k, C], by what they missed."""
    behind, columns = _behind(work, step, work.select(store.stamp, ids)), colour.shape[1]
    if step.stir is None:
        stored = store.m_geometry[:, :_PARAMETERS], store.v_geometry[:, :_PARAMETERS]
        _drift(work, stored, ids, behind, step.geometry_groups, geometry[:, :_PARAMETERS])
    else:
        with work.part():
            _catch_up_stirred(work, store, step, step.stir, ids, behind, geometry)
    stored = store.m_colour[:, :columns], store.v_colour[:, :columns]
    _drift(work, stored, ids, behind, step.colour_groups[:columns], colour)
    if step.bf16_colours:
        with work.part():
            colour.copy_(work.copied(colour, torch.bfloat16))  # to nearest, ties to even


def _drift(
    work: Workspace, moments: tuple[Tensor, Tensor], ids: Tensor, behind: _Behind, groups: Tensor, values: Tensor
) -> None:
    """Move values [k, C] along the drift of the moments of rows `ids`."""
    m, v = moments
    with work.part():
        below = work.select(v, ids).sqrt_().add_(behind.eps)
        values.sub_(work.select(m, ids).div_(below).mul_(work.select(behind.drift, groups, 1)))


def _catch_up_stirred(
    work: Workspace, store: DeviceStore, step: DeviceStep, stir_: DeviceStir, ids: Tensor, behind: _Behind, p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_catch_up` for geometry p [k, 12] that 3DGS-MCMC stirs; also what was stored, and its moments then, [k, 12] each."""
    stored = work.take(*p.shape).copy_(p)
    moments = store.m_geometry[:, :_PARAMETERS], store.v_geometry[:, :_PARAMETERS]
    _drift(work, moments, ids, behind, step.geometry_groups, p[:, :_PARAMETERS])
    m, v = work.select(store.m_geometry, ids), work.select(store.v_geometry, ids)
    decay1 = work.select(step.beta1_power, behind.missed)[:, None]
    decay2 = work.select(step.beta2_power, behind.missed)[:, None]
    missed = Missed(step.step - 1, behind.stamp, behind.missed, behind.drift, behind.eps, decay1, decay2)
    with work.part():
        stir(work, stir_, missed, stored, m, v, p)
    return stored, m, v


@torch.no_grad()
def adam_rows(
    store: DeviceStore,
    step: DeviceStep,
    rows: Tensor,
    gradients: DeviceGradients,
    slots: Tensor | None,
    columns: int,
    statistics: Tensor | None,
    entries: Tensor,
    work: Workspace | None = None,
) -> None:
    """Apply `step` to rows [M] with the gradients at slots [M] (None: positions 0..M-1). As `clm.kernels.rows.adam`.

    rows, slots: i32 or i64, unique. A row that no view drew keeps all it has, its stamp too. statistics [N, 4]
    adds up those of the gradient rows; entries [M, 4] receives the new cull entries, radius -1 where the row
    did not change. With `work` nothing is allocated; None: one that goes with the call.
    """
    work = work or Workspace(len(rows), rows.device)
    for first in range(0, len(rows), work.rows):
        part = slice(first, first + work.rows)
        with work.part():
            ids = work.copied(rows[part], torch.int64)
            at = part if slots is None else work.copied(slots[part], torch.int64)
            _step_rows(work, store, step, ids, gradients, at, columns, statistics, entries[part])


def _step_rows(
    work: Workspace,
    store: DeviceStore,
    step: DeviceStep,
    ids: Tensor,
    gradients: DeviceGradients,
    at: Tensor | slice,
    columns: int,
    statistics: Tensor | None,
    entries: Tensor,
) -> None:
    """As `adam_rows`, for as many rows as the workspace holds."""
    grad_geometry = _rows_of(work, gradients.grad_geometry, at)
    undrawn = torch.eq(grad_geometry[:, GRAD_DRAWN], 0, out=work.take(len(ids), dtype=torch.bool))
    stamp = work.select(store.stamp, ids)
    behind = _behind(work, step, stamp)
    if step.stir is not None:
        with work.part():
            new = _step_stirred(work, store, step, step.stir, ids, behind, grad_geometry, undrawn)
            _write_entries(work, step, *new, undrawn, entries)
    c = _coefficients(work, step, behind, undrawn)
    if step.stir is None:
        with work.part():
            stored = (store.geometry, store.m_geometry, store.v_geometry)
            gradient = grad_geometry[:, :_PARAMETERS]
            new = _step_columns(work, stored, ids, gradient, c, step.rate_geometry, step.geometry_groups)
            _write_entries(work, step, *new, undrawn, entries)
    with work.part():
        stored = (store.colour, store.m_colour, store.v_colour)
        gradient = _rows_of(work, gradients.grad_colour[:, :columns], at)
        _step_columns(work, stored, ids, gradient, c, step.rate_colour[:columns], step.colour_groups[:columns])
    drawn = torch.logical_not(undrawn, out=work.take(len(ids), dtype=torch.bool))
    store.stamp.index_copy_(0, ids, stamp.masked_fill_(drawn, step.step))
    if statistics is not None:
        seen = work.take(len(ids), statistics.shape[1]).copy_(grad_geometry[:, STATISTICS])
        seen.masked_fill_(undrawn[:, None], 0.0)
        statistics.index_copy_(0, ids, work.select(statistics, ids).add_(seen))


def _rows_of(work: Workspace, values: Tensor, at: Tensor | slice) -> Tensor:
    return values[at] if isinstance(at, slice) else work.select(values, at)


@dataclass(frozen=True)
class _Coefficients:
    """Per row what a column of it is multiplied with; neutral (keep 1, everything else 0) for a row that was not drawn."""

    drift: Tensor  # [k, 6]
    eps: Tensor  # [k, 1] of the catch-up
    eps_step: float
    keep1: Tensor  # [k, 1] beta1^missed beta1
    keep2: Tensor  # [k, 1]
    gain1: Tensor  # [k, 1] (1 - beta1) gradient_scale
    gain2: Tensor  # [k, 1] (1 - beta2) gradient_scale^2
    active: Tensor  # [k, 1] 1 or 0: multiplies the rate


def _coefficients(work: Workspace, step: DeviceStep, behind: _Behind, undrawn: Tensor) -> _Coefficients:
    """undrawn [k]: rows that no view drew."""
    scale, k = step.gradient_scale, len(undrawn)
    active = work.take(k).fill_(1.0).masked_fill_(undrawn, 0.0)
    keep1 = work.select(step.beta1_power, behind.missed).mul_(step.beta1).masked_fill_(undrawn, 1.0)
    keep2 = work.select(step.beta2_power, behind.missed).mul_(step.beta2).masked_fill_(undrawn, 1.0)
    return _Coefficients(
        drift=behind.drift.masked_fill_(undrawn[:, None], 0.0),
        eps=behind.eps,
        eps_step=step.eps_step,
        keep1=keep1[:, None],
        keep2=keep2[:, None],
        gain1=torch.mul(active, (1.0 - step.beta1) * scale, out=work.take(k))[:, None],
        gain2=torch.mul(active, (1.0 - step.beta2) * scale * scale, out=work.take(k))[:, None],
        active=active[:, None],
    )


def _step_columns(
    work: Workspace,
    stored: tuple[Tensor, Tensor, Tensor],
    ids: Tensor,
    g: Tensor,
    c: _Coefficients,
    rate: Tensor,
    groups: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Catch up and step the first g.shape[1] columns of the rows `ids` in place; returns their new (p, m, v) [k, C].

    One fraction for both, as in rows.cpp: drift m/a + rate m'/b = (drift m b + rate m' a) / (a b); a and b are at least eps,
    so the product stays a normal float.
    """
    shape = len(ids), g.shape[1]
    places = [array[:, : shape[1]] for array in stored]
    p, m, v = (work.select(place, ids) for place in places)
    with work.part():
        before = torch.sqrt(v, out=work.take(*shape)).add_(c.eps)
        drifted = work.select(c.drift, groups, 1).mul_(m)
        m.mul_(c.keep1).addcmul_(g, c.gain1)
        other = torch.mul(g, g, out=work.take(*shape))
        v.mul_(c.keep2).addcmul_(other, c.gain2)
        after = torch.sqrt(v, out=work.take(*shape)).add_(c.eps_step)
        moved = torch.mul(m, before, out=other).mul_(rate).mul_(c.active)
        p.sub_(drifted.mul_(after).add_(moved).div_(before.mul_(after)))
    for place, value in zip(places, (p, m, v), strict=True):
        place.index_copy_(0, ids, value)
    return p, m, v


def _step_stirred(
    work: Workspace,
    store: DeviceStore,
    step: DeviceStep,
    stir_: DeviceStir,
    ids: Tensor,
    behind: _Behind,
    grad_geometry: Tensor,
    undrawn: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry of the rows `ids` that 3DGS-MCMC stirs: caught up as it was fetched, then stepped with the pull in its gradient,
    then noised as the row was stored; in place. Returns the new (p, m, v) [k, 11]."""
    k = len(ids)
    p = work.select(store.geometry, ids)
    stored, m, v = _catch_up_stirred(work, store, step, stir_, ids, behind, p)
    with work.part():
        g = torch.mul(grad_geometry[:, :_PARAMETERS], step.gradient_scale, out=work.take(k, _PARAMETERS))
        g[:, PULLED].add_(pull_of(work, stir_, p[:, PULLED]))
        m[:, :_PARAMETERS].mul_(step.beta1).add_(g, alpha=1.0 - step.beta1)
        v[:, :_PARAMETERS].mul_(step.beta2).addcmul_(g, g, value=1.0 - step.beta2)
        below = torch.sqrt(v[:, :_PARAMETERS], out=work.take(k, _PARAMETERS)).add_(step.eps_step)
        p[:, :_PARAMETERS].sub_(torch.mul(m[:, :_PARAMETERS], step.rate_geometry, out=g).div_(below))
        add_noise(work, stir_, stored, step_variance(work, stir_, behind.stamp, step.step), step.step, p[:, MEANS])
        for place, value in ((store.geometry, p), (store.m_geometry, m), (store.v_geometry, v)):
            with work.part():
                kept = work.select(place, ids)
                place.index_copy_(0, ids, torch.where(undrawn[:, None], kept, value, out=work.take(k, kept.shape[1])))
    return p[:, :_PARAMETERS], m[:, :_PARAMETERS], v[:, :_PARAMETERS]


def _write_entries(
    work: Workspace, step: DeviceStep, p: Tensor, m: Tensor, v: Tensor, undrawn: Tensor, out: Tensor
) -> None:
    """Cull entries out [k, 4] of rows just updated: centre, and where the row may be drawn until its next gradient.

    3.33 sigma, every log-scale grown by its whole pending movement, plus the pending movement of the centre (rows.cpp,
    write_entry); -1 as the radius of a row that was not drawn.
    """
    k = len(p)
    below = torch.sqrt(v, out=work.take(*v.shape)).add_(step.eps_after)
    pending = torch.div(m, below, out=below)
    squares = torch.mul(pending[:, MEANS], step.reach_means, out=work.take(k, 3)).square_()
    centre = torch.sum(squares, 1, out=work.take(k)).sqrt_()
    if step.stir is not None:
        centre.add_(noise_reach(work, step.stir, p, step.step, step.variance_until))
    grown = torch.mul(pending[:, LOG_SCALES], -step.reach_log_scales, out=work.take(k, 3)).clamp_(min=0)
    radius = torch.amax(grown.add_(p[:, LOG_SCALES]), 1, out=work.take(k)).exp_()
    # The last factor is the float32 rounding of this bound itself.
    radius.mul_(EXTENT_SIGMAS).add_(centre).mul_(1.0001).masked_fill_(undrawn, -1.0)
    out[:, :3].copy_(p[:, MEANS])
    out[:, 3].copy_(radius)
