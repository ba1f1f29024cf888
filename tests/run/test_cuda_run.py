"""Whole training runs on the CUDA device without CUDA: its operations on CPU tensors, gsplat's Python over a stub of its kernels.

What is proven is the way through scene, plan, lanes, torch operations, densification, evaluation and files; the order of
work between streams is proven with the fake device, and what only a GPU can show is shown by `scripts/gpu_check.py`.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gsplat", reason="gsplat is not installed")

from clm.device import cuda  # noqa: E402
from clm.errors import ClmError, OutOfDeviceMemory, ResourceError  # noqa: E402
from clm.formats.ply_write import write_ply  # noqa: E402
from clm.plan.budget import RESIDENT_ROW_BYTES, arena_bytes, lanes_bytes  # noqa: E402
from clm.render.gsplat import GsplatRasterizer  # noqa: E402
from clm.render.temporaries import Temporaries  # noqa: E402
from clm.run.checkpoint import checkpoints  # noqa: E402
from clm.run.events import BatchDone, Densified, Evaluated, Message  # noqa: E402
from clm.scene.open import open_scene  # noqa: E402
from clm.store.init import PointRows  # noqa: E402
from clm.store.layout import LOG_SCALES, QUATS  # noqa: E402
from scripts.doubles import gsplat_stub  # noqa: E402
from tests.demo_run import (  # noqa: E402
    DEMO,
    FIXED,
    assert_same_model,
    checkpoint_arrays,
    of_type,
    read_json,
    run_demo,
    small_config,
    write_survey_scene,
)
from tests.device.test_cuda import device as cuda_double  # noqa: E402
from tests.formats.whole import read_all  # noqa: E402
from tests.run.test_ranks import run_ranks  # noqa: E402

ROWS, PIXELS = 400, 40 * 30
SMALL: dict[str, Any] = {"downscale": "8", "iterations": 24, "sh_interval": 8}
STILL = {**SMALL, **FIXED}
GROWING = {**SMALL, "max_gaussians": 600, "densify_from": 4, "densify_every": 8, "densify_until": 20}
GROWING |= {"grow_screen_gradient": 1e-4, "init_opacity": 0.3}


def part_of(rows: int) -> str:
    """A budget in which 40% of so many rows can stay on the device, if every view sees them all."""
    beside = Temporaries().temporary_bytes(rows, PIXELS) + lanes_bytes(rows) + arena_bytes(rows)
    return str(beside + rows * RESIDENT_ROW_BYTES * 4 // 10)


PLACEMENTS = {"none": ("none", "8GiB"), "host": ("host", "8GiB"), "auto": ("auto", part_of(ROWS))}


# torch is called by several lanes at once here: threads of its own only stand in each other's way.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def use_cuda_double(patch: pytest.MonkeyPatch, **replaced: Callable[..., Any]) -> None:
    gsplat_stub.install(patch, **replaced)

    def open_device(choice: str, *, antialiased: bool, absgrad: bool, say: Any) -> Any:
        return cuda_double(), GsplatRasterizer(antialiased, absgrad, say=say)

    patch.setattr("clm.run.open.open_device", open_device)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 400 rows have blocks to choose from."""
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 32)


@pytest.fixture(scope="module")
def ply(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 Gaussians at points of the bundled scene. No two scales are alike: of a sphere the gradient of the rotation is
    rounding alone, and Adam would make whole steps of it."""
    scene, rng = open_scene(DEMO, small_config(downscale="8")), np.random.default_rng(0)
    keep = np.sort(rng.permutation(len(scene.points))[:ROWS])
    geometry, colour = PointRows(scene.points, scene.point_colors, 0).rows(keep)
    geometry[:, QUATS] = rng.normal(size=(ROWS, 4))
    geometry[:, LOG_SCALES] += rng.normal(0.8, 0.5, size=(ROWS, 3))
    path = tmp_path_factory.mktemp("rows") / "rows.ply"
    write_ply(path, iter([(geometry, colour)]))
    return str(path)


@pytest.fixture(scope="module")
def runs(ply: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of each placement on the double, and `cpu`, made once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(name: str) -> Path:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("clm.store.paged.PAGE_ROWS", 32)
                if name != "cpu":
                    use_cuda_double(patch)
                offload, gpu_memory = PLACEMENTS.get(name, ("none", "8GiB"))
                run_demo(folder / name, offload=offload, gpu_memory=gpu_memory, init_ply=ply, **STILL)
            made[name] = folder / name
        return made[name]

    return run


def differing(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """Fraction of values that differ by more than the tolerance, relative to the largest of their column."""
    scale = np.abs(theirs).max(axis=0) + 1e-12
    return float(np.mean(np.abs(ours - theirs) > tolerance * scale))


def test_exposures_are_the_cpus_up_to_rounding(ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"init_ply": ply, "exposure": "on", **STILL}
    run_demo(tmp_path / "cpu", **options)
    use_cuda_double(monkeypatch)
    run_demo(tmp_path / "cuda", offload="none", gpu_memory="8GiB", **options)
    ours, theirs = (read_json(tmp_path / name / "exposure.json")["images"] for name in ("cuda", "cpu"))
    assert ours.keys() == theirs.keys() and len({image["log_gain"] for image in theirs.values()}) > 20
    for name, image in theirs.items():
        for key, values in image.items():
            np.testing.assert_allclose(ours[name][key], values, atol=2e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_model_is_the_cpus_up_to_rounding(runs: Callable[[str], Path], placement: str) -> None:
    ours, theirs = checkpoint_arrays(runs(placement)), checkpoint_arrays(runs("cpu"))
    before, _ = read_all(runs("cpu") / "input.ply")
    assert differing(before[:, :11], theirs["geometry"][:, :11], 1e-3) > 0.3, "training moves rows beyond the tolerance"
    # Adam divides by the root of the second moment: a gradient that is rounding alone may move a value by a whole step.
    for name in ("geometry", "colour"):
        assert differing(ours[name], theirs[name], 1e-3) < 0.005, name
    assert np.mean(ours["stamp"] != theirs["stamp"]) < 0.01
    np.testing.assert_allclose(ours["statistics"], theirs["statistics"], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ply_figures_and_receipt_are_written_as_on_the_cpu(runs: Callable[[str], Path], placement: str) -> None:
    """Evaluation renders and the PLY holds the rows that live on the device."""
    ours, theirs = runs(placement), runs("cpu")
    plys = [next(run.glob("point_cloud/*/point_cloud.ply")) for run in (ours, theirs)]
    for mine, expected in zip(read_all(plys[0]), read_all(plys[1]), strict=True):
        assert mine.shape == expected.shape and differing(mine, expected, 1e-3) < 0.005
    mine, expected = (read_json(run / "metrics.json") for run in (ours, theirs))
    for split in ("test", "train"):
        assert mine[split]["psnr"] == pytest.approx(expected[split]["psnr"], abs=0.02)
        assert mine[split]["ssim"] == pytest.approx(expected[split]["ssim"], abs=1e-3)
    report = read_json(ours / "report.json")
    assert report["device"] == "cuda" and report["offload"] == ("none" if placement == "none" else "host")
    loaded, bound = report["traffic"]["rows_loaded"], read_json(runs("host") / "report.json")["traffic"]["rows_loaded"]
    assert {"none": loaded == 0, "host": loaded == bound > 0, "auto": 0 < loaded < bound}[placement]


@pytest.mark.parametrize("placement", ["none", "auto"])
def test_evaluating_and_saving_on_the_way_changes_nothing(
    runs: Callable[[str], Path], ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    use_cuda_double(monkeypatch)
    offload, gpu_memory = PLACEMENTS[placement]
    options = {**STILL, "init_ply": ply, "eval_every": 8, "save_every": 8, "keep_checkpoints": 9}
    events = run_demo(tmp_path / "run", offload=offload, gpu_memory=gpu_memory, **options)
    assert len(of_type(events, Evaluated)) == 4 and len(checkpoints(tmp_path / "run" / "checkpoints")) == 3
    assert_same_model(runs(placement), tmp_path / "run")


@pytest.mark.parametrize(("before", "after"), [("none", "none"), ("host", "host"), ("auto", "auto")])
def test_a_resumed_run_equals_an_uninterrupted_one(
    runs: Callable[[str], Path], ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    use_cuda_double(monkeypatch)
    options = {**STILL, "init_ply": ply}
    for placement, stop_at in ((before, 12), (after, None)):
        offload, gpu_memory = PLACEMENTS[placement]
        resume = stop_at is None
        run_demo(tmp_path / "run", offload=offload, gpu_memory=gpu_memory, stop_at=stop_at, resume=resume, **options)
    assert_same_model(runs(before), tmp_path / "run")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_run_that_grows_ends_with_the_cpus_loss_and_a_whole_run_directory(
    ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    """Rounding decides which rows cross a threshold, so neither their number nor any row can be compared."""
    offload, gpu_memory = PLACEMENTS[placement][0], part_of(600) if placement == "auto" else "8GiB"
    cpu = run_demo(tmp_path / "cpu", offload="none", init_ply=ply, **GROWING)
    use_cuda_double(monkeypatch)
    events = run_demo(tmp_path / "run", offload=offload, gpu_memory=gpu_memory, init_ply=ply, **GROWING)
    grown = [sum(e.split for e in of_type(run, Densified)) for run in (cpu, events)]
    assert grown[0] > 20 and abs(grown[1] - grown[0]) <= 0.1 * grown[0]
    for mine, expected in zip(of_type(events, BatchDone), of_type(cpu, BatchDone), strict=True):
        assert mine.loss == pytest.approx(expected.loss, rel=0.02)
    psnr = [read_json(tmp_path / run / "metrics.json")["test"]["psnr"] for run in ("cpu", "run")]
    assert psnr[1] == pytest.approx(psnr[0], abs=0.2)
    files = [{p.name for p in (tmp_path / run).rglob("*") if p.is_file()} for run in ("cpu", "run")]
    assert files[0] == files[1]


def no_memory_at(calls: set[int]) -> dict[str, Callable[..., Any]]:
    """The stub's projection, for which the device has no memory at these calls (from 1)."""
    count = itertools.count(1)

    def projection(*args: Any) -> Any:
        if next(count) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        return gsplat_stub.FUNCTIONS[gsplat_stub.PROJECTION](*args)

    return {gsplat_stub.PROJECTION: projection}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_view_without_memory_is_repeated_in_a_smaller_arena_after_the_old_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    offload, gpu_memory = PLACEMENTS[placement]
    options = {**STILL, "data": survey(tmp_path), "downscale": "1", "batch_size": 8}
    if placement == "auto":
        gpu_memory = part_of(1500)
    use_cuda_double(monkeypatch)
    run_demo(tmp_path / "undisturbed", offload=offload, gpu_memory=gpu_memory, **options)

    arenas: list[weakref.ref[Any]] = []
    real = cuda.CudaDevice.arena

    def arena(self: cuda.CudaDevice, slots: int) -> Any:
        assert not any(there() for there in arenas), "the old arena is still held when the new one is made"
        made = real(self, slots)
        arenas.append(weakref.ref(made.geometry.untyped_storage()))
        return made

    monkeypatch.setattr(cuda.CudaDevice, "arena", arena)
    gsplat_stub.install(monkeypatch, **no_memory_at({3, 13, 14}))
    events = run_demo(tmp_path / "run", offload=offload, gpu_memory=gpu_memory, **options)
    warnings = [event.text for event in of_type(events, Message) if "out of device memory" in event.text]
    assert len(warnings) == 3 and len(arenas) == 4
    assert_same_model(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.parametrize(("placement", "operation"), [("none", "fetch_rows"), ("host", "place")])
def test_memory_that_ends_while_rows_are_loaded_is_found_in_a_smaller_arena_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, operation: str
) -> None:
    offload, gpu_memory = PLACEMENTS[placement]
    options = {**STILL, "data": survey(tmp_path), "downscale": "1", "batch_size": 8}
    use_cuda_double(monkeypatch)
    run_demo(tmp_path / "undisturbed", offload=offload, gpu_memory=gpu_memory, **options)
    owner: Any = cuda if operation == "fetch_rows" else cuda.CudaDevice
    real, count = getattr(owner, operation), itertools.count(1)

    def without_memory(*arguments: Any) -> Any:
        if next(count) in (4, 12):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments)

    monkeypatch.setattr(owner, operation, without_memory)
    events = run_demo(tmp_path / "run", offload=offload, gpu_memory=gpu_memory, **options)
    assert len([e for e in of_type(events, Message) if "the view is repeated" in e.text]) == 2
    assert_same_model(tmp_path / "undisturbed", tmp_path / "run")


def survey(folder: Path) -> Path:
    return write_survey_scene(folder / "survey", side=4, points=1200)


def test_where_no_smaller_arena_holds_the_view_the_state_is_saved(
    ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cuda_double(monkeypatch, **no_memory_at(set(range(6, 100))))
    with pytest.raises(OutOfDeviceMemory, match=r"while projecting a view of .*--gpu-memory"):
        run_demo(tmp_path / "run", offload="none", init_ply=ply, **STILL)
    assert checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_loss_that_is_not_finite_stops_saves_and_names_step_and_image(
    ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    count = itertools.count(1)

    def pixels(*args: Any) -> Any:
        image, alpha, last = gsplat_stub.FUNCTIONS[gsplat_stub.PIXELS](*args)
        return (image * math.nan if next(count) == 10 else image), alpha, last

    use_cuda_double(monkeypatch, **{gsplat_stub.PIXELS: pixels})
    offload, gpu_memory = PLACEMENTS[placement]
    options = {**STILL, "init_ply": ply, "offload": offload, "gpu_memory": gpu_memory}
    with pytest.raises(ClmError, match=r"loss is nan at step 3, image view_\d\d\.jpg"):
        run_demo(tmp_path / "run", **options)
    saved = checkpoint_arrays(tmp_path / "run")
    assert all(np.isfinite(values).all() for values in saved.values()) and saved["stamp"].max() == 3
    run_demo(tmp_path / "run", resume=True, **options)


def test_a_budget_beyond_the_device_is_one_sentence_that_names_the_flag(
    ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cuda_double(monkeypatch)

    def empty(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(cuda.torch, "empty", empty)
    with pytest.raises(ResourceError, match=r"no room left for .* of (arena|resident Gaussians)\. .*--gpu-memory"):
        run_demo(tmp_path / "run", offload="none", init_ply=ply, **STILL)


@pytest.mark.parametrize(("placement", "world"), [("none", 2), ("host", 3)])
def test_several_ranks_train_the_model_of_one(
    runs: Callable[[str], Path], ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, world: int
) -> None:
    """Splats and gradients are tensors of the device on their way; nothing of the model is known to be another."""
    use_cuda_double(monkeypatch)
    offload, gpu_memory = PLACEMENTS[placement]
    theirs = run_ranks(tmp_path / "run", world, offload=offload, gpu_memory=gpu_memory, init_ply=ply, **STILL)
    one, several = (
        read_all(ranks / "point_cloud" / "iteration_24" / "point_cloud.ply")
        for ranks in (runs(placement), tmp_path / "run")
    )
    for ours, other in zip(several, one, strict=True):
        assert differing(ours, other, 2e-3) < 0.01
    assert len(of_type(theirs[1], BatchDone)) == 6


def test_no_host_waits_for_what_travels(ply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams wait for the events around a collective. The thread that computes waits for copies of its lists and rows alone, the
    thread of the network for nothing, and each rank's lanes for what those of one process wait for."""
    use_cuda_double(monkeypatch)
    waits: set[tuple[str, str]] = set()
    synchronize = cuda.CudaEvent.synchronize

    def wait(event: Any, why: str) -> None:
        if not any(word in why for word in ("the image is there", "may go")):  # at the end of the run
            name = threading.current_thread().name
            waits.add((name if name in ("update", "network") else "computes", why))
        synchronize(event, why)

    monkeypatch.setattr(cuda.CudaEvent, "synchronize", wait)
    reasons = []
    for world in (1, 2):
        waits.clear()
        run_ranks(tmp_path / f"run_{world}", world, offload="host", init_ply=ply, test_every=0, **STILL)
        reasons.append(set(waits))
    assert reasons[1] == reasons[0]
    assert reasons[0] == {
        ("computes", "index lists are on the device before any stream uses them"),
        ("computes", "the rows gathered before have left this staging buffer"),
        ("update", "the gradients of this turn have arrived on the host"),
    }
