"""How fast: everything resident and host offload against a plain loop of the same kernels, scenes up to the host's memory,
and what a stated machine was predicted to do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.device.budget import available_memory
from clm.plan.batch import batch_views
from clm.plan.budget import store_bytes
from clm.plan.sightings import sightings
from clm.run.open import Run
from clm.scene import Scene
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS
from clm.units import format_bytes, parse_bytes
from gpu_parts.check import Check, Findings, Spans, advance
from gpu_parts.synthetic import flat_scene, flat_store, open_flat, small_scene, small_store

HEAD = "| what | images/s | load s | compute s | send back s | update s | hidden | plan exposed | bubble |"


class PlainLoop:
    """What a trainer without any out-of-core machinery does: gsplat's own rasterisation of all rows, L1 and SSIM in autograd,
    dense fused Adam of torch. Nothing of it is ours but the photos, so that a comparison hides nothing."""

    def __init__(self, check: Check, run: Run):
        import torch

        self._run, self._check, self._image, self.loss = run, check, 0, 0.0
        with run.residence.whole() as store:
            parts = {
                "means": store.geometry[:, MEANS],
                "quats": store.geometry[:, QUATS],
                "log_scales": store.geometry[:, LOG_SCALES],
                "logit_opacities": store.geometry[:, LOGIT_OPACITIES],
                "coefficients": store.colour.reshape(-1, 16, 3),
            }
            self._rows = {
                name: torch.nn.Parameter(torch.tensor(part, device=check.where)) for name, part in parts.items()
            }
        self._adam = torch.optim.Adam(self._rows.values(), lr=1e-5, eps=1e-15, fused=True)

    def train_batch(self) -> float:
        """Seconds of one optimizer step."""
        run, config, began = self._run, self._run.schedule.config, time.perf_counter()
        losses = []
        for view in batch_views(run.scene.train, config.seed, self._image, config.batch_size):
            loss = self._view_loss(run.scene.views[view].camera, run.photos.cache.get(view), config.ssim_weight)
            loss.backward()
            losses.append(loss.detach())
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._image += config.batch_size
        self.loss = sum(map(float, losses))  # as a trainer that shows it, and so waits for the views
        self._check.synchronize()
        return time.perf_counter() - began

    def _view_loss(self, camera: Camera, photo: np.ndarray, ssim_weight: float) -> Any:
        import gsplat
        import torch

        rows, where = self._rows, self._check.where
        viewmat, intrinsics = (
            torch.tensor(matrix, dtype=torch.float32, device=where)[None]
            for matrix in (camera.world_to_camera, camera.K)
        )
        image, _, _ = gsplat.rasterization(
            rows["means"], rows["quats"], rows["log_scales"].exp(), rows["logit_opacities"].sigmoid(),
            rows["coefficients"], viewmat, intrinsics, camera.width, camera.height, sh_degree=3, packed=False,
        )  # fmt: skip
        target = torch.tensor(photo, device=where).permute(2, 0, 1) / 255
        rgb = image[0].permute(2, 0, 1)
        return (1 - ssim_weight) * (rgb - target).abs().mean() + ssim_weight * (1 - ssim(rgb, target))


def ssim(first: Any, second: Any) -> Any:
    """Mean SSIM of two images [3, H, W]: 11x11 Gaussian window, sigma 1.5, as every 3DGS trainer has it."""
    import torch

    taps = torch.exp(-((torch.arange(11.0, device=first.device) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps)[None, None].expand(3, 1, 11, 11) / taps.sum() ** 2

    def blur(image: Any) -> Any:
        return torch.nn.functional.conv2d(image[None], window, padding=5, groups=3)[0]

    mu1, mu2 = blur(first), blur(second)
    var1, var2 = blur(first * first) - mu1 * mu1, blur(second * second) - mu2 * mu2
    covariance = blur(first * second) - mu1 * mu2
    top = (2 * mu1 * mu2 + 0.01**2) * (2 * covariance + 0.03**2)
    return (top / ((mu1 * mu1 + mu2 * mu2 + 0.01**2) * (var1 + var2 + 0.03**2))).mean()


def speed(check: Check, findings: Findings) -> None:
    """On the real scene and on a synthetic one: the plain loop, none and host take turns, batch by batch."""
    scene = check.scene()
    findings.lines += [HEAD, "|---|---|---|---|---|---|---|---|---|"]
    for batch in (4, 1) if not check.double else (2,):
        with ExitStack() as stack:
            runs = {
                name: stack.enter_context(check.open(scene, check.config(offload=name, batch_size=batch)))
                for name in ("none", "host")
            }
            for run in runs.values():
                for index in scene.train:
                    run.photos.cache.get(int(index))  # decoded before the clock starts, as in a run's second epoch
            in_turns(check, findings, f"{check.scene_path.name}, batch {batch}", runs)
    flat = small_scene(check)
    with ExitStack() as stack:
        runs = {}
        for name in ("none", "host"):
            config = check.config(offload=name, batch_size=2 if check.double else 4)
            runs[name] = stack.enter_context(open_flat(check, flat, small_store(check), config))
        in_turns(check, findings, f"flat, {runs['none'].residence.rows:,} Gaussians", runs)


def in_turns(check: Check, findings: Findings, title: str, runs: dict[str, Run]) -> None:
    plain, warm, batches = PlainLoop(check, runs["none"]), check.size(8, 4, 1), check.size(40, 12, 2)
    steps: dict[str, Callable[[], float]] = {"plain": plain.train_batch}
    steps |= {name: (lambda run=run: advance(run, 1)[0].seconds) for name, run in runs.items()}
    for _ in range(warm):
        for step in steps.values():
            step()
    before = {name: dataclasses.replace(run.accounts.totals.lanes) for name, run in runs.items()}
    kept = {name: Spans() for name in runs}
    for name, run in runs.items():
        run.accounts.trace = kept[name]  # type: ignore[assignment]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(batches):
        for name in list(steps) if turn % 2 else reversed(list(steps)):
            seconds[name].append(steps[name]())
        if check.seconds_left() < 20:
            break
    size = runs["none"].schedule.config.batch_size
    rates = {name: size / float(np.median(walls)) for name, walls in seconds.items()}
    findings.figure(
        f"{title}: plain", {"images_per_second": rates["plain"]}, f"| {title}, plain loop | {rates['plain']:.1f} |"
    )
    findings.lines[-1] += " | | | | | | |"
    for name, run in runs.items():
        seen = lane_figures(run, before[name], kept[name], len(seconds[name]))
        seen["images_per_second"] = rates[name]
        cells = " | ".join(f"{seen[lane]:.4f}" for lane in ("load", "compute", "send_back", "update"))
        shares = " | ".join(f"{100 * seen[key]:.1f}%" for key in ("hidden", "plan_exposed", "bubble"))
        findings.figure(f"{title}: {name}", seen, f"| {title}, {name} | {rates[name]:.1f} | {cells} | {shares} |")
        run.accounts.trace = None
    ratio = float(np.median(np.array(seconds["plain"]) / np.array(seconds["none"])))
    findings.expect(
        f"{title}: everything resident at least at 95% of the plain loop", ratio >= 0.95 or check.double, f"{ratio:.3f}"
    )
    exposed = findings.figures[f"{title}: host"]["plan_exposed"]
    met = exposed <= 0.03 or check.double
    findings.expect(f"{title}: exposed planning at most 3% of the batch time", met, f"{100 * exposed:.1f}%")


def lane_figures(run: Run, before: Any, kept: Spans, batches: int) -> dict[str, float]:
    """Seconds per batch by lane, and shares: hidden lanes' work, exposed planning, and the bubble between batches."""
    now, computes = run.accounts.totals.lanes, [span for span in kept.spans if span.lane == "compute"]
    names = ("load", "compute", "send_back", "update", "exposed", "plan_exposed")
    seen = {name: getattr(now, name) - getattr(before, name) for name in names}
    work = seen["load"] + seen["send_back"] + seen["update"]
    # The bubble between batches: what was computed in neither by this run, less the gaps between the views of a batch.
    total = seen["compute"] + seen["exposed"] + seen["plan_exposed"]
    inside = sum(max(0.0, b.start - a.end) for a, b in pairwise(computes) if b.turn > a.turn)
    shares = {
        "hidden": 1.0 if work <= 0 else min(1.0, max(0.0, 1 - seen["exposed"] / work)),
        "bubble": max(0.0, seen["exposed"] + seen["plan_exposed"] - inside) / total,
    }
    seen["plan_exposed"] /= total
    return {**{name: value / batches if name in names[:5] else value for name, value in seen.items()}, **shares}


def ramp(check: Check, findings: Findings) -> None:
    """Scenes up to the host's memory under one budget: does it hold, what moves, how fast."""
    width, height = (24, 18) if check.double else (1600, 1064)
    findings.lines += [
        f"Budget {check.budget}, {width}x{height} px, a view sees about 1.5% of the field, batches of 4.",
        "Shares are of the budget, and of the estimate that the run ended with.",
        "",
        "| Gaussians | resident | largest view | images/s | loaded per image | hidden | device memory | temporaries | build s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    scene = flat_scene(width, height, 0.2 if check.double else 0.015, 9 if check.double else 100)
    for rows in (
        (1000, 2000) if check.double else (2_000_000,) if check.quick else (10_000_000, 30_000_000, 100_000_000)
    ):
        if 1.1 * store_bytes(rows) > available_memory():
            available = format_bytes(available_memory())
            findings.figure(
                f"{rows}", None, f"| {rows:,} | {format_bytes(store_bytes(rows))} of {available} RAM: left out |"
            )
            continue
        if check.seconds_left() < rows / 1e6 + 15:
            findings.figure(f"{rows}", None, f"| {rows:,} | no time left |")
            continue
        climb(check, findings, scene, rows)


def climb(check: Check, findings: Findings, scene: Scene, rows: int) -> None:
    began = time.perf_counter()
    store = flat_store(rows)
    built = time.perf_counter() - began
    config = check.config(offload="auto", max_gaussians=None, batch_size=2 if check.double else 4)
    with open_flat(check, scene, store, config) as run:
        residence, totals = run.residence, run.accounts.totals
        pixels = residence.cameras[0].width * residence.cameras[0].height
        advance(run, 2)
        totals.bytes_loaded = totals.images = 0
        before = dataclasses.replace(totals.lanes)
        seconds: list[float] = []
        while len(seconds) < check.size(12, 6, 2) and check.seconds_left() > 10:
            seconds.append(advance(run, 1)[0].seconds)  # and no plan: they take memory
        (peak, taken), budget = check.device_memory(), parse_bytes(check.budget)
        with residence.whole():
            view = sightings(store, residence.cameras).largest_view
        temporaries = residence.rasterizer.peak_temporaries
        lanes = lane_figures(run, before, Spans(), len(seconds))
        seen = {
            "resident": residence.tiers.resident_rows / rows,
            "slots": residence.arena.slots,
            "images_per_second": config.batch_size / float(np.median(seconds)),
            "bytes_loaded_per_image": totals.bytes_loaded / totals.images,
            "peak_device_bytes": peak,
            "reserved_device_bytes": taken,
            "predicted_device_bytes": totals.device_bytes,
            "temporaries": temporaries,
            "temporaries_estimate": residence.rasterizer.temporary_bytes(view, pixels),
            "rows_of_the_largest_view": view,
            "build_seconds": built,
            "lanes": lanes,
        }
    cells = [f"{rows:,}", f"{100 * seen['resident']:.0f}%", f"{view:,}", f"{seen['images_per_second']:.2f}"]
    cells += [format_bytes(int(seen["bytes_loaded_per_image"])), f"{100 * lanes['hidden']:.0f}%"]
    cells += [f"{format_bytes(peak)}, {100 * peak / budget:.0f}% (with cached {format_bytes(taken)})"]
    cells += [f"{format_bytes(temporaries)}, {100 * temporaries / seen['temporaries_estimate']:.0f}%", f"{built:.1f}"]
    findings.figure(f"{rows}", seen, "| " + " | ".join(cells) + " |")
    findings.expect(
        f"{rows:,}: device memory within the budget", peak <= budget, f"{format_bytes(peak)} of {check.budget}"
    )
    met = temporaries <= seen["temporaries_estimate"]
    findings.expect(f"{rows:,}: temporaries within what is now estimated", met, format_bytes(temporaries))


def predicted(check: Check, findings: Findings) -> None:
    """Images/s of host offload, as the simulator says for a machine file and as they are here."""
    try:
        from clm.forecast.machine import load_machine
        from clm.forecast.simulate import simulate
    except ImportError:
        findings.figure("skipped", True, "This version has no simulator (`clm.forecast.simulate`).")
        return
    scene, machine = small_scene(check), load_machine(check.machine)
    with open_flat(check, scene, small_store(check), check.config(offload="host", batch_size=4)) as run:
        advance(run, check.size(8, 4, 1))
        before = dataclasses.replace(run.accounts.totals.lanes)
        trained = advance(run, check.size(20, 8, 2))
        measured = 4 / float(np.median([batch.seconds for batch in trained]))
        lanes = lane_figures(run, before, Spans(), len(trained))
    pixels = [view.camera.width * view.camera.height for view in scene.views]
    timeline = simulate([batch.plan for batch in trained], machine, pixels)
    figures = {"measured": measured, "predicted": timeline.images_per_second, "machine": machine.name, "lanes": lanes}
    line = f"Predicted for {machine.name}: {timeline.images_per_second:.1f} images/s; measured here: {measured:.1f}."
    findings.figure("images_per_second", figures, line)
