"""The tables of deferred Adam on a device, and the numbers of one step. Their derivation: `clm/optim/adam.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clm.device.cuda_stir import DeviceStir
from clm.optim.adam import Adam
from clm.store.layout import GROUPS

_GEOMETRY_GROUPS = [0] * 3 + [1] * 4 + [2] * 3 + [3]  # group of each column, as in GROUPS
_COLOUR_GROUPS = [4] * 3 + [5] * 45


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
    stir: DeviceStir | None = None  # what 3DGS-MCMC adds
    variance_until: float = 0.0  # its summed variance at the step after which all cull entries are made anew


class DeviceAdam:
    """The tables of an `Adam` on a device: uploaded once, 304 bytes per step of the schedule."""

    def __init__(self, adam: Adam, device: torch.device | str):
        def upload(values: object, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype).to(device)

        self._adam, tables = adam, adam.tables()
        self._drift = upload(tables.drift.T.copy(), torch.float64)
        self._ratio_power = upload(tables.ratio_power, torch.float64)
        self._beta1_power = upload(tables.beta1_power, torch.float32)
        self._beta2_power = upload(tables.beta2_power, torch.float32)
        self._eps_drift = upload(tables.eps_drift, torch.float32)
        rates = np.ascontiguousarray(tables.rates.T)
        self._rates_geometry = upload(rates[:, _GEOMETRY_GROUPS], torch.float32)
        self._rates_colour = upload(rates[:, _COLOUR_GROUPS], torch.float32)
        self._geometry_groups = upload(_GEOMETRY_GROUPS, torch.int64)
        self._colour_groups = upload(_COLOUR_GROUPS, torch.int64)
        self._tables = tables
        self._stir = None if adam.stir is None else DeviceStir(adam.stir, device)

    def at(
        self, step: int, views: int = 1, bf16_colours: bool = False, variance_until: float | None = None
    ) -> DeviceStep:
        """As `Adam.at`: constants for applying `step` (1-based) to gradients summed over `views` views."""
        constants = self._adam.at(step, views)
        return DeviceStep(
            step=step,
            drift=self._drift,
            ratio_power=self._ratio_power,
            beta1_power=self._beta1_power,
            beta2_power=self._beta2_power,
            eps_drift=self._eps_drift,
            rate_geometry=self._rates_geometry[step],
            rate_colour=self._rates_colour[step],
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
            stir=self._stir,
            variance_until=constants.variance_until if variance_until is None else variance_until,
        )
