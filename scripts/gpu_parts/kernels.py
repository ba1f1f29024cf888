"""The machine, and each operation of the CUDA path against its counterpart on the CPU.

gsplat is built with fast math: its own tolerance for a whole image is 1e-4, for gradients 1e-3 to 1e-2 of the largest, with
rare flips at the thresholds 1/255 and 1e-4. Hence small outlier fractions are compared, never the largest difference.
"""

from __future__ import annotations

import os
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.device.budget import available_memory
from clm.image import losses
from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.render import CpuRasterizer
from clm.store.layout import GRAD_DRAWN, GRAD_SCREEN, LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS
from clm.store.store import Store
from clm.stream.parking import GradientBuffer
from gpu_parts.check import Check, Findings, outliers
from scripts.doubles.scenes import look_at_origin, random_rows

BACKGROUND = (0.2, 0.5, 0.8)
IMAGE, DEPTH, GRADIENT = 1e-4, 1e-3, 1e-3
IMAGE_OUTLIERS, GRADIENT_OUTLIERS = 1e-3, 5e-3
VARIANTS: dict[str, dict[str, Any]] = {
    "degree 0": {"degree": 0},
    "degree 3": {"degree": 3},
    "antialiased": {"degree": 2, "antialiased": True},
    "absgrad": {"degree": 1, "absgrad": True},
    "depth": {"degree": 1, "depth": True},
    "off centre": {"degree": 1, "camera": {"off_centre": 25.0}},
    "close, clamped": {"degree": 3, "camera": {"distance": 0.5, "focal": 25.0}},
}


def facts(check: Check, findings: Findings) -> None:
    """torch, CUDA, driver, and the rates of the bus from registered memory."""
    import torch

    found = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "cores": os.cpu_count()}
    found["host_bytes_available"] = available_memory()
    if check.double:
        findings.figure("machine", found, "Doubles: no device.")
        return
    properties = torch.cuda.get_device_properties(0)
    driver = driver_version()
    found |= {"device": properties.name, "device_bytes": properties.total_memory, "driver": driver}
    findings.figure(
        "machine", found, f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, driver {driver}, "
    )
    findings.lines[-1] += f"torch {torch.__version__}, CUDA {torch.version.cuda}; "
    findings.lines[-1] += f"{os.cpu_count()} cores, {found['host_bytes_available'] / 2**30:.0f} GiB of RAM available."
    rates = bus_rates(check)
    findings.figure(
        "bus_gb_s", rates, f"Bus: {rates['in']:.1f} GB/s in, {rates['out']:.1f} GB/s out, registered memory."
    )
    counting = check.timed(lambda: (torch.cuda.reset_peak_memory_stats(), torch.cuda.max_memory_allocated()), 20)
    findings.figure("peak_counter_us", 1e6 * counting, f"Reading torch's peak counter: {1e6 * counting:.0f} us.")


def driver_version() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.strip().split("\n")[0]
    except OSError:
        return "unknown"


def bus_rates(check: Check, megabytes: int = 256) -> dict[str, float]:
    from clm.device.cuda import CudaDevice

    device = CudaDevice()
    stream, floats = device.stream("load"), megabytes * 2**18
    staging = device.staging(floats)
    rates = {}
    for name, copy in (("in", device.to_device), ("out", device.to_host)):
        seconds = check.timed(lambda copy=copy: stream.run(copy, staging, floats), 5)
        rates[name] = 4e-9 * floats / seconds
    return rates


def compile_gsplat(check: Check, findings: Findings) -> None:
    from clm.render.gsplat import GsplatRasterizer

    said: list[str] = []
    began = time.perf_counter()
    GsplatRasterizer(say=said.append)
    seconds = time.perf_counter() - began
    findings.figure("seconds", seconds, f"{seconds:.1f} s, {'compiled' if said else 'found compiled'}.")


def parity(check: Check, findings: Findings) -> None:
    """Images, gradients and statistics of the CPU backend and of gsplat; both against the float64 twin."""
    count = check.size(300, 300, 150)
    findings.lines += [
        "Fractions of values beyond the tolerance: image 1e-4, depth 1e-3, gradients 1e-3 of the largest.",
        "",
        "| variant | pair | image | depth | means | quats | scales | opacity | colour | screen | drawn |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, options in VARIANTS.items():
        camera = look_at_origin(*((40, 30) if check.double else (72, 50)), **options.get("camera", {}))
        choice = SimpleNamespace(**{"antialiased": False, "absgrad": False, "depth": False, **options})
        rows = random_rows(count, seed=choice.degree)
        backends = {"cpu": on_cpu, "gsplat": on_device, "twin": on_twin}
        results = {backend: draw(check, rows, camera, choice) for backend, draw in backends.items()}
        for ours, theirs in (("gsplat", "cpu"), ("gsplat", "twin"), ("cpu", "twin")):
            seen = compare(results[ours], results[theirs])
            shown = " | ".join(f"{value:.1e}" if value is not None else "" for value in seen.values())
            findings.figure(f"{name}: {ours}, {theirs}", seen, f"| {name} | {ours}, {theirs} | {shown} |")
            met = all(
                value is None or value <= (IMAGE_OUTLIERS if part in ("image", "depth") else GRADIENT_OUTLIERS)
                for part, value in seen.items()
            )
            findings.expect(f"{ours} and {theirs} agree: {name}", met, shown)


def cotangents(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    shape = camera.height, camera.width
    return rng.normal(size=(3, *shape)).astype(np.float32), 0.1 * rng.normal(size=shape).astype(np.float32)


def on_cpu(check: Check, rows: tuple[np.ndarray, ...], camera: Camera, choice: Any) -> dict[str, np.ndarray]:
    rasterizer, count = CpuRasterizer(choice.antialiased, choice.absgrad), len(rows[0])
    slots = np.arange(count, dtype=np.int32)
    render = rasterizer.forward(*rows, slots, camera, choice.degree, BACKGROUND, depth=choice.depth)
    images = {"image": render.rgb.copy()}
    if render.depth is not None:
        images["depth"] = render.depth.copy()
    geometry, colour = np.zeros((count, 16), np.float32), np.zeros((count, 48), np.float32)
    v_rgb, v_depth = cotangents(camera)
    rasterizer.rasterize_backward(v_rgb, None, v_depth if choice.depth else None)
    rasterizer.project_backward(*rows, slots, 0, geometry, colour)
    return {**images, "geometry": geometry, "colour": colour}


def on_device(check: Check, rows: tuple[np.ndarray, ...], camera: Camera, choice: Any) -> dict[str, np.ndarray]:
    import torch

    from clm.render.gsplat import GsplatRasterizer

    rasterizer, count = GsplatRasterizer(choice.antialiased, choice.absgrad), len(rows[0])
    there = [torch.tensor(values, device=check.where) for values in rows]
    slots = torch.arange(count, device=check.where)
    render = rasterizer.forward(*there, slots, camera, choice.degree, BACKGROUND, depth=choice.depth)
    images = {"image": render.rgb.cpu().numpy()}
    if render.depth is not None:
        images["depth"] = render.depth.cpu().numpy()
    gradients = [torch.zeros((count, width), device=check.where) for width in (16, 48)]
    v_rgb, v_depth = (torch.tensor(values, device=check.where) for values in cotangents(camera))
    rasterizer.rasterize_backward(v_rgb, None, v_depth if choice.depth else None)
    rasterizer.project_backward(*there, slots, 0, *gradients)
    geometry, colour = (values.cpu().numpy() for values in gradients)
    return {**images, "geometry": geometry, "colour": colour}


def on_twin(check: Check, rows: tuple[np.ndarray, ...], camera: Camera, choice: Any) -> dict[str, np.ndarray]:
    import torch

    from clm.render import twin

    leaves = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in rows]
    p = twin.project(*leaves, camera, choice.degree, choice.antialiased)
    p.means2d.retain_grad()
    rgb, _, depth = twin.composite(p, camera, torch.tensor(BACKGROUND))
    v_rgb, v_depth = (torch.tensor(values) for values in cotangents(camera))
    ((rgb * v_rgb).sum() + ((depth * v_depth).sum() if choice.depth else 0)).backward()
    geometry = np.zeros((len(rows[0]), 16))
    geometry[:, :11] = leaves[0].grad.numpy()[:, :11]
    screen = (p.absgrad if choice.absgrad else p.means2d.grad).numpy() * (camera.width / 2, camera.height / 2)
    geometry[:, GRAD_SCREEN] = np.hypot(*screen.T)
    geometry[:, GRAD_DRAWN] = (p.radii.numpy() > 0).all(1)
    images = {"image": rgb.detach().numpy(), **({"depth": depth.detach().numpy()} if choice.depth else {})}
    return {**images, "geometry": geometry, "colour": leaves[1].grad.numpy()}


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Fractions beyond the tolerance, by what is compared."""
    seen: dict[str, float | None] = {"image": outliers(ours["image"], theirs["image"], IMAGE)}
    seen["depth"] = outliers(ours["depth"], theirs["depth"], DEPTH) if "depth" in theirs else None
    columns = {"means": MEANS, "quats": QUATS, "scales": LOG_SCALES, "opacity": [LOGIT_OPACITIES]}
    parts = {name: (ours["geometry"][:, at], theirs["geometry"][:, at]) for name, at in columns.items()}
    parts["colour"] = ours["colour"], theirs["colour"]
    parts["screen"] = ours["geometry"][:, GRAD_SCREEN], theirs["geometry"][:, GRAD_SCREEN]
    for name, (mine, expected) in parts.items():
        seen[name] = outliers(mine, expected, GRADIENT * float(np.abs(expected).max()))
    seen["drawn"] = float(np.mean(ours["geometry"][:, GRAD_DRAWN] != theirs["geometry"][:, GRAD_DRAWN]))
    return seen


def image_loss(check: Check, findings: Findings) -> None:
    """Loss and gradient against the CPU kernel, and its time."""
    import torch

    from clm.image import torch_losses as torch_loss

    width, height = (96, 64) if check.double else (1600, 1064)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = rng.normal(0, 0.1, (3, height, width))
    rgb = np.ascontiguousarray(np.clip(photo.transpose(2, 0, 1) / 255 + noise, 0, 1), np.float32)
    theirs = losses.l1_ssim(rgb, photo, 0.2)
    image, target = (torch.tensor(values, device=check.where) for values in (rgb, photo))
    ours = torch_loss.l1_ssim(image, target, 0.2)
    off = abs(float(ours.total) - theirs.total)
    findings.expect("loss within 1e-6 of the CPU kernel", off <= 1e-6, f"{off:.1e}")
    scale = float(np.abs(theirs.v_rgb).max())
    share = outliers(ours.v_rgb.cpu().numpy(), theirs.v_rgb, 1e-5 * scale)
    findings.expect("its gradient within 1e-5 of the largest, but for 1 value in 10,000", share <= 1e-4, f"{share:.1e}")
    milliseconds = 1e3 * check.timed(lambda: torch_loss.l1_ssim(image, target, 0.2), check.size(20, 5, 1))
    findings.figure("ms", milliseconds, f"Loss and gradient of {width}x{height}: {milliseconds:.2f} ms.")


def device_adam(check: Check, findings: Findings) -> None:
    """Adam on resident rows against the host's kernel, over several steps of random touch patterns."""
    import torch

    from clm.device.cuda_adam import adam_rows
    from clm.device.cuda_tables import DeviceAdam

    count, steps = check.size(500_000, 100_000, 400), 6
    rng = np.random.default_rng(0)
    store = Store.from_rows(*random_rows(count))
    there = SimpleNamespace(**{name: torch.tensor(getattr(store, name), device=check.where) for name in store.names})
    adam = Adam(np.full((6, steps + 1), 1e-2), Betas.for_batch(4))
    device_adam = DeviceAdam(adam, check.where)
    fresh, seconds = torch.zeros((count, 4), device=check.where), []
    for step in range(1, steps + 1):
        rows = np.flatnonzero(rng.random(count) < 0.8).astype(np.int32)
        buffer = GradientBuffer(len(rows))
        buffer.grad_geometry[:] = rng.normal(size=buffer.grad_geometry.shape) * 1e-4
        buffer.grad_geometry[:, GRAD_DRAWN] = rng.random(len(rows)) < 0.7
        buffer.grad_colour[:] = rng.normal(size=buffer.grad_colour.shape) * 1e-4
        gradients = SimpleNamespace(
            **{
                name: torch.tensor(getattr(buffer, name), device=check.where)
                for name in ("grad_geometry", "grad_colour")
            }
        )
        ids = torch.tensor(rows, device=check.where)
        check.synchronize()
        began = time.perf_counter()
        at = device_adam.at(step, 4)
        adam_rows(there, at, ids, gradients, None, 48, there.statistics, fresh[: len(rows)])
        check.synchronize()
        seconds.append((time.perf_counter() - began) / len(rows))
        entries = np.zeros((len(rows), 4), np.float32)
        row_kernels.adam(store, adam.at(step, 4), rows, buffer, None, 48, store.statistics, entries)
    for name in store.names:
        mine, theirs = getattr(there, name).cpu().numpy().astype(np.float64), getattr(store, name).astype(np.float64)
        scale = np.abs(theirs).max(axis=1, keepdims=True) if theirs.ndim == 2 else np.abs(theirs)
        share = float(np.mean(np.abs(mine - theirs) > 2e-6 * (scale + 1e-30)))
        findings.expect(f"{name} as the host's kernel leaves it", share <= 1e-5, f"{share:.1e} beyond 2e-6 of the row")
    nanoseconds = 1e9 * float(np.median(seconds[1:]))
    findings.figure("ns_per_row", nanoseconds, f"{nanoseconds:.2f} ns per row (48 colour columns, {count:,} rows).")
