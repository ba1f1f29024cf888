"""Deferred Adam in torch, on whatever device the rows are: the mathematics of `clm/kernels/src/rows.cpp` for resident rows.

Rows are the store's, index tensors say which. Nothing waits for the device: rows that no view drew are carried through the
arithmetic with neutral coefficients instead of being picked out, and get back exactly what they had. Rows are worked on
DEVICE_ROWS at a time, which bounds the temporaries (below 64 MiB). Derivation of the tables: `clm/optim/adam.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clm.gaussians.layout import EXTENT_SIGMAS, GRAD_DRAWN, GRAD_SCREEN, GROUPS, LOG_SCALES, MEANS
from clm.optim.adam import Adam
from clm.plan.budget import DEVICE_ROWS

_PARAMETERS = 11  # columns of geometry that are parameters; the twelfth is padding, in a gradient row a count
_GEOMETRY_GROUPS = [0] * 3 + [1] * 4 + [2] * 3 + [3]  # group of each column, as in GROUPS
_COLOUR_GROUPS = [4] * 3 + [5] * 45


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
class DeviceStep:
    """One optimizer step: tables on the device, shared by all steps, and this step's numbers on the host."""

    step: int  # the step to apply; rows are caught up to step - 1 first
    drift: Tensor  # [steps + 1, 6] f64 lr-weighted sum of all later zero-gradient steps, per group
    ratio_power: Tensor  # [steps + 1] f64 r^d
    beta1_power: Tensor  # [steps + 1] f32 beta1^d
    beta2_power: Tensor  # [steps + 1] f32 beta2^d
    eps_drift: Tensor  # [steps + 1] f32 eps as it acts on the first missed step after s
    rate_geometry: Tensor  # [11] f32 lr_t c_t of each column
    rate_colour: Tensor  # [48] f32
    geometry_groups: Tensor  # [11] i64 group of each column
    colour_groups: Tensor  # [48] i64
    beta1: float
    beta2: float
    eps_step: float  # eps sqrt(1 - beta2^t)
    eps_after: float  # eps_drift of this step
    gradient_scale: float  # 1 / views of the batch
    reach_means: float  # pending drift after this step, for cull entries
    reach_log_scales: float
    bf16_colours: bool  # fetched colours are rounded to bf16


class DeviceAdam:
    """The tables of an `Adam` on a device: uploaded once, 92 bytes per step of the schedule."""

    def __init__(self, adam: Adam, device: torch.device | str):
        def upload(values: object, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype).to(device)

        self._adam, tables = adam, adam.tables()
        self._drift = upload(tables.drift.T.copy(), torch.float64)
        self._ratio_power = upload(tables.ratio_power, torch.float64)
        self._beta1_power = upload(tables.beta1_power, torch.float32)
        self._beta2_power = upload(tables.beta2_power, torch.float32)
        self._eps_drift = upload(tables.eps_drift, torch.float32)
        self._rates = upload(tables.rates.T.copy(), torch.float32)
        self._geometry_groups = upload(_GEOMETRY_GROUPS, torch.int64)
        self._colour_groups = upload(_COLOUR_GROUPS, torch.int64)
        self._tables = tables

    def at(self, step: int, views: int = 1, bf16_colours: bool = False) -> DeviceStep:
        """As `Adam.at`: constants for applying `step` (1-based) to gradients summed over `views` views."""
        constants = self._adam.at(step, views)
        rates = self._rates[step]
        return DeviceStep(
            step=step,
            drift=self._drift,
            ratio_power=self._ratio_power,
            beta1_power=self._beta1_power,
            beta2_power=self._beta2_power,
            eps_drift=self._eps_drift,
            rate_geometry=rates.index_select(0, self._geometry_groups),
            rate_colour=rates.index_select(0, self._colour_groups),
            geometry_groups=self._geometry_groups,
            colour_groups=self._colour_groups,
            beta1=constants.beta1,
            beta2=constants.beta2,
            eps_step=constants.eps_step,
            eps_after=float(self._tables.eps_drift[step]),
            gradient_scale=constants.gradient_scale,
            reach_means=float(self._tables.drift[GROUPS.index("means"), step]),
            reach_log_scales=float(self._tables.drift[GROUPS.index("log_scales"), step]),
            bf16_colours=bf16_colours,
        )


@dataclass(frozen=True)
class _Behind:
    """The missed steps of k rows, in closed form."""

    drift: Tensor  # [k, 6] f32
    eps: Tensor  # [k, 1] f32
    missed: Tensor  # [k] i64


def _behind(step: DeviceStep, stamp: Tensor) -> _Behind:
    """What rows with these stamps [k] i64 missed up to `step - 1`.

    A row that missed nothing needs no case of its own: its drift is exactly 0, its powers are 1, and eps cancels. Nor does one
    that never had a gradient (stamp 0): its moments are zero.
    """
    missed = step.step - 1 - stamp
    drift = step.drift.index_select(0, stamp)
    # The difference cancels digits: it is taken in float64 and only then rounded.
    drift -= step.ratio_power.index_select(0, missed)[:, None] * step.drift[step.step - 1]
    return _Behind(drift.float(), step.eps_drift.index_select(0, stamp)[:, None], missed)


@torch.no_grad()
def fetch_rows(
    store: DeviceStore,
    step: DeviceStep | None,
    rows: Tensor,
    geometry: Tensor,
    colour: Tensor,
    columns: int,
    slots: Tensor | None = None,
) -> None:
    """Catch rows [M] up to `step - 1` and copy them to geometry/colour at slots [M] (None: positions 0..M-1).

    rows, slots: i32 or i64, unique. step None: copied as they are. The store is not changed. As `clm.kernels.rows.fetch`.
    """
    for first in range(0, len(rows), DEVICE_ROWS):
        part = slice(first, first + DEVICE_ROWS)
        ids = rows[part].long()
        new_geometry = store.geometry.index_select(0, ids)
        new_colour = store.colour[:, :columns].index_select(0, ids)
        if step is not None:
            behind = _behind(step, store.stamp.index_select(0, ids).long())
            pieces = (
                (new_geometry[:, :_PARAMETERS], store.m_geometry, store.v_geometry, step.geometry_groups),
                (new_colour, store.m_colour, store.v_colour, step.colour_groups[:columns]),
            )
            for values, m, v, groups in pieces:
                width = values.shape[1]
                below = v[:, :width].index_select(0, ids).sqrt_().add_(behind.eps)
                move = m[:, :width].index_select(0, ids).div_(below).mul_(behind.drift.index_select(1, groups))
                values.sub_(move)
                del below, move
            if step.bf16_colours:
                new_colour.copy_(new_colour.bfloat16())  # to nearest, ties to even
        for target, values in ((geometry, new_geometry), (colour[:, :columns], new_colour)):
            if slots is None:
                target[part].copy_(values)
            else:
                target.index_copy_(0, slots[part].long(), values)


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
) -> None:
    """Apply `step` to rows [M] with the gradients at slots [M] (None: positions 0..M-1). As `clm.kernels.rows.adam`.

    rows, slots: i32 or i64, unique. A row that no view drew keeps all it has, its stamp too. statistics [N, 2] (views that
    drew the row, summed screen gradient) accumulates; entries [M, 4] receives the new cull entries, radius -1 where the row
    did not change.
    """
    for first in range(0, len(rows), DEVICE_ROWS):
        part = slice(first, first + DEVICE_ROWS)
        ids = rows[part].long()
        at = slice(first, first + len(ids)) if slots is None else slots[part].long()
        grad_geometry = _rows_of(gradients.grad_geometry, at)
        drawn = grad_geometry[:, GRAD_DRAWN] != 0
        stamp = store.stamp.index_select(0, ids)
        coefficients = _coefficients(step, _behind(step, stamp.long()), drawn)
        stored = (store.geometry, store.m_geometry, store.v_geometry)
        geometry, m, v = _step_columns(
            stored, ids, grad_geometry[:, :_PARAMETERS], coefficients, step.rate_geometry, step.geometry_groups
        )
        entries[part] = _entries(step, geometry, m, v, drawn)
        del geometry, m, v
        grad_colour = _rows_of(gradients.grad_colour[:, :columns], at)
        stored = (store.colour, store.m_colour, store.v_colour)
        _step_columns(stored, ids, grad_colour, coefficients, step.rate_colour[:columns], step.colour_groups[:columns])
        del grad_colour
        store.stamp.index_copy_(0, ids, torch.where(drawn, step.step, stamp))
        if statistics is not None:
            seen = torch.stack([grad_geometry[:, GRAD_DRAWN], grad_geometry[:, GRAD_SCREEN]], 1)
            statistics.index_add_(0, ids, torch.where(drawn[:, None], seen, 0.0))


def _rows_of(values: Tensor, at: Tensor | slice) -> Tensor:
    return values[at] if isinstance(at, slice) else values.index_select(0, at)


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


def _coefficients(step: DeviceStep, behind: _Behind, drawn: Tensor) -> _Coefficients:
    scale, active = step.gradient_scale, drawn.float()[:, None]
    keep1 = step.beta1_power.index_select(0, behind.missed) * step.beta1
    keep2 = step.beta2_power.index_select(0, behind.missed) * step.beta2
    return _Coefficients(
        drift=torch.where(drawn[:, None], behind.drift, 0.0),
        eps=behind.eps,
        eps_step=step.eps_step,
        keep1=torch.where(drawn, keep1, 1.0)[:, None],
        keep2=torch.where(drawn, keep2, 1.0)[:, None],
        gain1=active * ((1.0 - step.beta1) * scale),
        gain2=active * ((1.0 - step.beta2) * scale * scale),
        active=active,
    )


def _step_columns(
    stored: tuple[Tensor, Tensor, Tensor], ids: Tensor, g: Tensor, c: _Coefficients, rate: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Catch up and step the first g.shape[1] columns of the rows `ids` in place; returns their new (p, m, v) [k, C].

    One fraction for both, as in rows.cpp: drift m/a + rate m'/b = (drift m b + rate m' a) / (a b); a and b are at least eps,
    so the product stays a normal float.
    """
    places = [array[:, : g.shape[1]] for array in stored]
    p, m, v = (place.index_select(0, ids) for place in places)
    before = v.sqrt().add_(c.eps)
    drifted = c.drift.index_select(1, groups).mul_(m)
    m.mul_(c.keep1).addcmul_(g, c.gain1)
    v.mul_(c.keep2).addcmul_(g * g, c.gain2)
    after = v.sqrt().add_(c.eps_step)
    move = drifted.mul_(after).add_((m * before).mul_(rate).mul_(c.active))
    p.sub_(move.div_(before.mul_(after)))
    for place, value in zip(places, (p, m, v), strict=True):
        place.index_copy_(0, ids, value)
    return p, m, v


def _entries(step: DeviceStep, p: Tensor, m: Tensor, v: Tensor, drawn: Tensor) -> Tensor:
    """Cull entries [k, 4] of rows just updated: centre, and where the row may be drawn until its next gradient.

    3.33 sigma, every log-scale grown by its whole pending movement, plus the pending movement of the centre (rows.cpp,
    write_entry); -1 as the radius of a row that was not drawn.
    """
    pending = m / (v.sqrt() + step.eps_after)
    centre = (pending[:, MEANS] * step.reach_means).square().sum(1).sqrt()
    grown = p[:, LOG_SCALES] + (pending[:, LOG_SCALES] * -step.reach_log_scales).clamp(min=0)
    radius = (EXTENT_SIGMAS * grown.amax(1).exp() + centre) * 1.0001  # the float32 rounding of this bound itself
    return torch.cat([p[:, MEANS], torch.where(drawn, radius, -1.0)[:, None]], 1)
