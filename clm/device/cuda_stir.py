"""What 3DGS-MCMC adds to deferred Adam, in torch: the mathematics of `clm/kernels/src/stir.h` for resident rows.

Derivations: `clm/optim/mcmc.py`. Nothing waits for the device and nothing is allocated, as in `clm.device.cuda_adam`: rows that
nothing happens to are computed like the others, and keep what they had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clm.device.workspace import Workspace
from clm.optim.mcmc import GATE_CENTRE, GATE_END, GATE_SLOPE, NOISE_REACH, StirTables
from clm.store.layout import IDENTITY, LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS

PULLED = slice(
    LOG_SCALES.start, LOGIT_OPACITIES + 1
)  # columns that are regularised: three log-scales, the logit of opacity
_WORD, _WEYL = 0xFFFFFFFF, 0x9E3779B9
_TWO_PI = 6.2831853
_LARGEST = 60.0  # of a logarithm


class DeviceStir:
    """The tables of a leg on the device: 28 bytes per step."""

    def __init__(self, tables: StirTables, device: torch.device | str):
        def upload(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype).to(device)

        mcmc = tables.mcmc
        self.variance = upload(tables.variance, torch.float64)  # [steps + 1]
        self.rate_sums = upload(tables.rate_sums.T.copy(), torch.float64)  # [steps + 1, 2]
        self.spent = upload(tables.beta2_spent, torch.float32)
        self.growth = upload(tables.growth, torch.float32)
        self.weights = upload([mcmc.scale_pull] * 3 + [mcmc.opacity_pull], torch.float32)  # [4]
        self.shares = upload([tables.shares[0]] * 3 + [tables.shares[1]], torch.float32)
        self.groups = upload([2, 2, 2, 3], torch.int64)  # of pulled columns in tables of drift
        self.sums_of = upload([0, 0, 0, 1], torch.int64)  # and in `rate_sums`
        self.seed, self.host = mcmc.seed, tables


@dataclass(frozen=True)
class Missed:
    """Steps that k rows missed up to step `to`: stamp, missed [k] i64, drift [k, 6], eps [k, 1], decay1, decay2 [k, 1] f32."""

    to: int
    stamp: Tensor
    missed: Tensor
    drift: Tensor
    eps: Tensor
    decay1: Tensor
    decay2: Tensor


def stir(
    work: Workspace, tables: DeviceStir, behind: Missed, stored: Tensor, m: Tensor, v: Tensor, geometry: Tensor
) -> None:
    """Rows whose geometry [k, 12] plain Adam has caught up from `stored` [k, 12] are noised and pulled; m, v [k, 12]: their moments
    as they were, which become what they are after the missed steps."""
    k = len(stored)
    still = torch.eq(behind.stamp, 0, out=work.take(k, dtype=torch.bool))
    now = torch.eq(behind.missed, 0, out=work.take(k, dtype=torch.bool))
    still.logical_or_(now)
    pulled, m_to, v_to = (work.take(k, 4) for _ in range(3))
    with work.part():
        _pull(work, tables, behind, stored, m, v, geometry[:, PULLED], (pulled, m_to, v_to))
        for values, kept in ((pulled, stored), (m_to, m), (v_to, v)):
            values.copy_(torch.where(still[:, None], kept[:, PULLED], values, out=work.take(k, 4)))
    geometry[:, PULLED].copy_(pulled)
    m.mul_(behind.decay1)
    v.mul_(behind.decay2)
    m[:, PULLED].copy_(m_to)
    v[:, PULLED].copy_(v_to)
    variance = _between(work, tables, behind.stamp, behind.to, still)
    add_noise(work, tables, stored, variance, behind.to, geometry[:, MEANS])


def _between(work: Workspace, tables: DeviceStir, stamp: Tensor, to: int, still: Tensor) -> Tensor:
    """Summed variance [k] f32 of the noise over the steps after `stamp` up to `to`; 0 where a row is `still`."""
    variance = work.take(len(stamp))
    with work.part():
        summed = work.select(tables.variance, stamp).neg_().add_(tables.variance[to]).clamp_(min=0.0)
        variance.copy_(summed).masked_fill_(still, 0.0)
    return variance


def step_variance(work: Workspace, tables: DeviceStir, stamp: Tensor, step: int) -> Tensor:
    """Variance [k] f32 of the noise of one step, of rows with these stamps [k]; 0 for rows without a gradient before."""
    alone = float(tables.host.variance[step] - tables.host.variance[step - 1])
    none = torch.eq(stamp, 0, out=work.take(len(stamp), dtype=torch.bool))
    return work.take(len(stamp)).fill_(alone).masked_fill_(none, 0.0)


def pull_of(work: Workspace, tables: DeviceStir, columns: Tensor) -> Tensor:
    """Gradient [k, 4] of the regularisation at pulled columns [k, 4]."""
    g = work.take(*columns.shape)
    g[:, :3].copy_(columns[:, :3]).clamp_(max=_LARGEST).exp_()
    opacity = torch.sigmoid(columns[:, 3], out=work.take(len(columns)))
    torch.mul(opacity, opacity, out=g[:, 3]).sub_(opacity).neg_()
    return g.mul_(tables.weights)


def _pull(
    work: Workspace,
    tables: DeviceStir,
    behind: Missed,
    stored: Tensor,
    m: Tensor,
    v: Tensor,
    plain: Tensor,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Pulled columns and their moments after the missed steps, out [k, 4] each; plain [k, 4]: where plain Adam has them."""
    k = len(stored)
    p, m_to, v_to = out
    before, m, v = stored[:, PULLED], m[:, PULLED], v[:, PULLED]
    g, rate = pull_of(work, tables, before), work.take(k, 4)
    with work.part():
        sums = work.select(tables.rate_sums, behind.stamp).neg_().add_(tables.rate_sums[behind.to])
        sums.div_(work.copied(behind.missed, torch.float64).clamp_(min=1.0)[:, None])
        rate.copy_(work.select(sums, tables.sums_of, 1))
    g2 = torch.mul(g, g, out=work.take(k, 4))
    below = torch.mul(g2, tables.shares, out=work.take(k, 4)).add_(v).sqrt_().add_(behind.eps)
    drift = work.select(behind.drift, tables.groups, 1)
    torch.sub(m, g, out=p).div_(below).mul_(drift).neg_().add_(before)
    amount = rate.mul_(work.select(tables.growth, behind.missed)[:, None]).div_(below).mul_(tables.weights)
    down = torch.clamp(p[:, :3], max=_LARGEST, out=work.take(k, 3)).exp_().mul_(amount[:, :3]).log1p_()
    p[:, :3].sub_(down)
    _flow(work, p[:, 3], amount[:, 3])
    most = torch.maximum(plain, before, out=work.take(k, 4))
    p.copy_(torch.minimum(p, most, out=work.take(k, 4)))
    there = pull_of(work, tables, p)
    spent = work.select(tables.spent, behind.missed)[:, None]
    kept = torch.neg(spent, out=work.take(k, 1)).add_(1.0)
    m_to.copy_(m).mul_(behind.decay1).sub_(torch.mul(there, behind.decay1, out=work.take(k, 4))).add_(there)
    there.mul_(there)
    early = torch.minimum(tables.shares, spent, out=work.take(k, 4)).mul_(kept)
    v_to.copy_(v).mul_(kept).add_(early.mul_(g2.sub_(there).clamp_(min=0.0))).add_(there.mul_(spent))


def _flow(work: Workspace, x: Tensor, amount: Tensor) -> None:
    """Logits of opacity x [k] after the flow down their gradient over `amount` [k]: 2 x + 2 sinh x becomes less by it."""
    k = len(x)
    x.clamp_(-_LARGEST, _LARGEST)
    up, down, target = (work.take(k) for _ in range(3))

    def exponentials() -> None:
        torch.exp(x, out=up)
        torch.reciprocal(up, out=down)

    exponentials()
    torch.mul(x, 2.0, out=target).add_(up).sub_(down).sub_(amount)
    x.copy_(target).mul_(0.25).asinh_()
    error, slope = work.take(k), work.take(k)
    for _ in range(4):
        exponentials()
        torch.mul(x, 2.0, out=error).add_(up).sub_(down).sub_(target)
        torch.add(up, down, out=slope).add_(2.0)
        x.sub_(error.div_(slope))


def noise_gates(work: Workspace, logits: Tensor) -> Tensor:
    """Gates [k] of rows with these logits of opacity [k]; 0 from opacity 0.2 on."""
    shut = torch.lt(logits, GATE_END, out=work.take(len(logits), dtype=torch.bool)).logical_not_()
    gate = torch.sigmoid(logits, out=work.take(len(logits)))
    gate.sub_(GATE_CENTRE).mul_(-GATE_SLOPE).sigmoid_()
    return gate.masked_fill_(shut, 0.0)


def add_noise(work: Workspace, tables: DeviceStir, stored: Tensor, variance: Tensor, to: int, means: Tensor) -> None:
    """Means [k, 3] of rows with geometry `stored` [k, 12] are moved by one draw with this variance [k], keyed by `to`."""
    k = len(stored)
    with work.part():
        z = _normals(work, stored[:, IDENTITY], to, tables.seed)
        strength = noise_gates(work, stored[:, LOGIT_OPACITIES]).mul_(torch.sqrt(variance, out=work.take(k)))
        z.mul_(torch.mul(stored[:, LOG_SCALES], 2.0, out=work.take(k, 3)).exp_()).mul_(strength[:, None])
        none = torch.eq(strength, 0.0, out=work.take(k, dtype=torch.bool))
        z.masked_fill_(none[:, None], 0.0)  # a broken row keeps its mean
        q = work.take(k, 4).copy_(stored[:, QUATS])
        norm = torch.sum(torch.mul(q, q, out=work.take(k, 4)), 1, out=work.take(k))
        q.mul_(norm.clamp_(min=1e-24).rsqrt_()[:, None])
        axis = q[:, 1:]
        turned = _cross(axis, z, work.take(k, 3)).mul_(2.0)  # z + w t + axis x t, t = 2 axis x z
        again = _cross(axis, turned, work.take(k, 3))
        moved = z.add_(turned.mul_(q[:, :1])).add_(again)
        means.add_(moved)


def _cross(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    for i, (j, n) in enumerate(((1, 2), (2, 0), (0, 1))):
        torch.mul(a[:, j], b[:, n], out=out[:, i])
        out[:, i].addcmul_(a[:, n], b[:, j], value=-1.0)
    return out


def _scramble(work: Workspace, x: Tensor) -> Tensor:
    """A bijection of 32-bit words x [k] i64, in place (Wellons' lowbias32)."""
    with work.part():
        shifted = work.take(len(x), dtype=torch.int64)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x.bitwise_xor_(torch.bitwise_right_shift(x, shift, out=shifted)).mul_(factor).bitwise_and_(_WORD)
    return x


def _normals(work: Workspace, identities: Tensor, to: int, seed: int) -> Tensor:
    """Three standard normal numbers [k, 3] f32 for rows with these identities [k], no longer than NOISE_REACH together."""
    k = len(identities)
    z, words = work.take(k, 3), work.take(k, 4)
    with work.part():
        state, word = work.take(k, dtype=torch.int64), work.take(k, dtype=torch.int64)
        state.copy_(identities.view(torch.int32)).bitwise_and_(_WORD).bitwise_xor_(seed)
        _scramble(work, _scramble(work, state).add_(to * _WEYL & _WORD).bitwise_and_(_WORD))
        for i in range(4):
            word.copy_(state).add_((i + 1) * _WEYL & _WORD).bitwise_and_(_WORD)
            words[:, i].copy_(_scramble(work, word).bitwise_right_shift_(8))
    words.add_(0.5).mul_(2.0**-24)
    far = words[:, 0::2]
    far.log_().mul_(-2.0).sqrt_()
    words[:, 1::2].mul_(_TWO_PI)
    torch.cos(words[:, 1], out=z[:, 0])
    torch.sin(words[:, 1], out=z[:, 1])
    torch.cos(words[:, 3], out=z[:, 2])
    z[:, :2].mul_(words[:, :1])
    z[:, 2].mul_(words[:, 2])
    length = torch.sum(torch.mul(z, z, out=work.take(k, 3)), 1, out=work.take(k)).sqrt_()
    shorter = torch.reciprocal(length, out=length).mul_(NOISE_REACH).clamp_(max=1.0)
    return z.mul_(shorter[:, None])


def noise_reach(work: Workspace, tables: DeviceStir, p: Tensor, step: int, until: float) -> Tensor:
    """How far noise can move rows with geometry p [k, >= 11], updated at `step`, until the summed variance is `until`: [k]."""
    reach = NOISE_REACH * max(0.0, 2.0 * (until - float(tables.host.variance[step]))) ** 0.5
    gate = noise_gates(work, p[:, LOGIT_OPACITIES])
    largest = torch.amax(p[:, LOG_SCALES], 1, out=work.take(len(p))).mul_(2.0).exp_()
    return gate.mul_(largest).mul_(reach)
