"""`clm plan` says before step 0 what a run then needs and moves, and refuses what cannot fit with ways out that work."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from clm.commands.plan import forecast_facts
from clm.forecast.budgets import find_budgets
from clm.forecast.forecast import make_forecast
from clm.forecast.machine import load_machine, machine_folders
from clm.plan.budget import SLOT_BYTES, grown_pages, page_file_bytes, store_bytes
from clm.scene.open import open_scene
from clm.units import parse_count
from tests.conftest import scene_path
from tests.demo_run import DEMO, FIXED, clm, environment, read_json, run_demo, small_config, write_survey_scene

KEYS = {"required", "available", "placement", "reason", "traffic", "prediction"}
STILL = {f"{name}_lr": 0.0 for name in ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")}


def facts_of(*arguments: str | Path) -> dict[str, Any]:
    result = clm("plan", *arguments, "--json", "--machine", "rtx4090")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def facts_on_a_cpu(data: Path, **options: Any) -> dict[str, Any]:
    """The same where the device is the host's, so that all of --gpu-memory is for rows and slots."""
    config = small_config(**options)
    scene = open_scene(data, config, require_images=False)
    on_cpu = dataclasses.replace(load_machine("rtx4090"), device="cpu", compute_cores=4)
    return forecast_facts(make_forecast(scene, config, find_budgets(config, None), on_cpu))


def first_batches(data: Path, **options: Any) -> list[dict[str, int]]:
    """What `clm plan` says about the first batches of a run with these options."""
    return facts_on_a_cpu(data, **options)["traffic"]["first_batches"]


@pytest.mark.parametrize(
    ("images", "rates"),
    [(12, {}), (48, STILL), (12, {"colour_bus": "bf16"})],
    ids=["a training batch", "four still batches", "colours in two bytes"],
)
def test_predicted_bytes_are_the_bytes_of_the_run(tmp_path: Path, images: int, rates: dict[str, Any]) -> None:
    """A tight arena, so that partial gradients travel; one SH degree more every batch. The first batch of a run meets the
    rows that the plan saw; later ones do so exactly only if training does not move them."""
    data = write_survey_scene(tmp_path / "survey")
    options: dict[str, Any] = {"downscale": "1", "batch_size": 12, "sh_interval": 12, "offload": "host", **FIXED}
    options |= {"iterations": images, "gpu_memory": str(1000 * SLOT_BYTES), **rates}
    predicted = first_batches(data, **options)
    run_demo(tmp_path / "run", data=data, **options)
    traffic = read_json(tmp_path / "run" / "report.json")["traffic"]
    assert len(predicted) == images // 12
    for name in ("rows_loaded", "bytes_loaded", "bytes_sent_back"):
        assert traffic[name] == sum(batch[name] for batch in predicted) > 0
    assert traffic["rows_loaded"] > traffic["rows_lower_bound"], "no row was evicted before its last use"


def test_bytes_stay_close_to_the_prediction_while_rows_move(tmp_path: Path) -> None:
    options = {"iterations": 80, "downscale": "2", "offload": "host", **FIXED}
    predicted = first_batches(DEMO, **options)
    run_demo(tmp_path / "run", **options)
    traffic = read_json(tmp_path / "run" / "report.json")["traffic"]
    assert traffic["bytes_loaded"] == pytest.approx(sum(batch["bytes_loaded"] for batch in predicted), rel=0.05)


def test_json_has_the_keys_of_the_contract() -> None:
    facts = facts_of(DEMO, "--offload", "host", "--max-gaussians", "20M")
    assert facts.keys() >= KEYS and facts["fits"]
    assert facts["reason"] == facts["placement"]["reason"]
    for name in ("device", "host", "disk", "photos"):
        assert facts["required"][f"{name}_bytes"] <= facts["available"][f"{name}_bytes"]
        assert facts["available"]["sources"][name]
    assert facts["required"]["device_bytes_per_unloaded_gaussian"] == 0
    assert facts["required"]["host_bytes"] == facts["placement"]["host_bytes"] == store_bytes(20_000_000)
    assert facts["traffic"]["per_image"]["bytes_loaded"] > 0
    prediction = facts["prediction"]
    assert prediction["images_per_second"] > 0 and 0 <= prediction["hidden_fraction"] <= 1
    assert {span["lane"] for span in prediction["timeline"]} >= {"load", "compute", "update", "plan"}
    assert any("TITAN RTX" in sentence for sentence in facts["assumptions"])


def test_counts_are_scaled_and_arrays_are_not() -> None:
    small, large = (facts_of(DEMO, "--offload", "host", "--max-gaussians", count) for count in ("2M", "8M"))
    for name in ("rows_loaded", "bytes_loaded", "bytes_sent_back"):
        assert large["traffic"]["per_image"][name] == pytest.approx(4 * small["traffic"]["per_image"][name], rel=1e-3)
    tracemalloc.start()
    refused = clm("plan", DEMO, "--max-gaussians", "1.5B", "--host-memory", "128GiB", "--machine", "rtx4090")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.returncode == 3 and peak < 200e6


def test_a_scaled_plan_meets_the_same_tight_arena(tmp_path: Path) -> None:
    """Three million Gaussians in an arena for a million are what three thousand are in an arena for a thousand."""
    data = write_survey_scene(tmp_path / "survey")
    options: dict[str, Any] = {"downscale": "1", "batch_size": 12, "offload": "host"}
    exact = facts_on_a_cpu(data, **options, gpu_memory=str(1000 * SLOT_BYTES))["traffic"]["per_image"]
    large = {"gpu_memory": str(10**6 * SLOT_BYTES), "max_gaussians": 3_000_000}
    scaled = facts_on_a_cpu(data, **options, **large)["traffic"]["per_image"]
    assert exact["rows_loaded"] > 1.02 * exact["rows_lower_bound"], "the arena is not tight"
    for name, count in exact.items():
        assert scaled[name] == pytest.approx(1000 * count, rel=5e-3), name


def test_rows_of_resident_blocks_do_not_cross_the_bus() -> None:
    arguments = (DEMO, "--max-gaussians", "14M", "--gpu-memory")
    moving = facts_of(*arguments, "16GiB", "--offload", "host")["traffic"]["per_image"]
    facts = facts_of(*arguments, "16GiB")
    staying = facts["traffic"]["per_image"]
    assert "stay on the device" in facts["reason"] and facts["placement"]["resident_rows"] > 0
    loaded = staying["rows_loaded"] + staying["rows_loaded_resident"]
    assert loaded == pytest.approx(moving["rows_loaded"], rel=0.02)
    share = facts["placement"]["resident_rows"] / 14_000_000
    assert staying["rows_loaded_resident"] > share * loaded, "the rows that most views see are the ones that stay"
    assert staying["bytes_loaded"] < moving["bytes_loaded"]


def test_models_without_photos_are_planned(tmp_path: Path) -> None:
    shutil.copytree(DEMO / "sparse", tmp_path / "sparse")
    result = clm("plan", tmp_path, "--machine", "laptop-8gb")
    assert result.returncode == 0, result.stderr
    assert "offload: none" in result.stdout and "images/s" in result.stdout
    assert not (set(p.name for p in tmp_path.iterdir()) - {"sparse"}), "something was left behind"


@pytest.mark.parametrize("name", ["models/street_1499cams", "models/aerial_394cams"])
def test_large_models_without_photos_are_planned(name: str) -> None:
    facts = facts_of(scene_path(name), "--max-gaussians", "30M", "--gpu-memory", "16GiB")
    assert facts["placement"]["offload"] == "host" and facts["traffic"]["per_image"]["rows_loaded"] > 100_000


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field of which each of 576 views sees about a hundredth."""
    return write_survey_scene(tmp_path_factory.mktemp("wide") / "scene", 24, 20_000, 30.0)


def test_a_hundred_million_gaussians_fit_the_host_and_a_billion_and_a_half_the_disk(wide: Path) -> None:
    budget = ("--gpu-memory", "24GiB", "--host-memory", "128GiB", "--machine", "rtx4090-8tb")
    result = clm("plan", wide, "--max-gaussians", "102M", *budget)
    assert result.returncode == 0, result.stderr
    assert "device bytes per Gaussian that is not loaded: 0" in result.stdout
    assert re.search(r"prediction for RTX 4090 desktop with 8 TB: [\d.]+ images/s", result.stdout)
    assert "offload: host" in result.stdout and "disk per image" not in result.stdout and "assumed" in result.stdout
    result = clm("plan", wide, "--max-gaussians", "1.5B", *budget)
    assert result.returncode == 0, result.stderr
    assert "offload: disk, because 1.0 TiB of state exceeds the 128.0 GiB budget of host memory" in result.stdout
    assert re.search(r"scratch +1.3 TiB", result.stdout) and re.search(r"disk in +\|.*0", result.stdout)
    assert re.search(r"disk per image: [\d.]+ GiB read, [\d.]+ GiB written; \d+% of the pages", result.stdout)
    too_small = clm("plan", wide, "--max-gaussians", "1.5B", *budget[:-1], "rtx4090")
    assert too_small.returncode == 3
    assert "need 1.0 TiB of host memory, but have 128.0 GiB" in too_small.stderr
    assert "`--scratch DIR` on a disk with 1307.2GiB free" in too_small.stderr
    fewer = re.search(r"`--max-gaussians (\S+)`", too_small.stderr)
    assert fewer and 4e8 < parse_count(fewer[1], "a fix") < 1.5e9, "as many as the disk holds"
    assert clm("plan", wide, "--max-gaussians", fewer[1], *budget[:-1], "rtx4090").returncode == 0
    assert re.search(r"host +1.0 TiB +128.0 GiB .*too little", too_small.stdout)


def test_what_lies_on_disk_is_counted_and_predicted(wide: Path) -> None:
    arguments = (wide, "--max-gaussians", "30M", "--gpu-memory", "4GiB", "--host-memory")
    tight, roomy = (facts_of(*arguments, size, "--offload", "disk") for size in ("6GiB", "60GiB"))
    for facts in (tight, roomy):
        placement, required = facts["placement"], facts["required"]
        assert placement["offload"] == "disk" and facts["fits"]
        assert required["scratch_bytes"] == placement["disk_bytes"] == grown_pages(30_000_000) * page_file_bytes()
        assert required["host_bytes"] <= facts["available"]["host_bytes"] and facts["warnings"] == []
    assert tight["placement"]["frames"] < roomy["placement"]["frames"] == grown_pages(30_000_000)
    disk, without = tight["traffic"]["disk"], roomy["traffic"]["disk"]
    assert without["bytes_read_per_image"] == without["bytes_written_per_image"] == 0
    assert without["hit_rate"] == without["hidden_fraction"] == 1
    assert disk["bytes_read_per_image"] > 10**7 and 0 < disk["hit_rate"] < 1 and disk["misses_of_lru"] < 0.9
    assert tight["prediction"]["lanes"]["disk"] > 0
    assert tight["prediction"]["images_per_second"] < roomy["prediction"]["images_per_second"]
    assert "read ahead" in " ".join(tight["assumptions"])


def test_a_machine_whose_disk_is_not_described_is_not_guessed(tmp_path: Path) -> None:
    text = (machine_folders()[-1] / "rtx4090.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(re.sub(r"(?m)^disk_.*$", "", text))
    refused = clm("plan", DEMO, "--offload", "disk", "--machine", tmp_path / "mine.yaml")
    assert refused.returncode == 2 and "`disk_read_gb_s`" in refused.stderr and refused.stderr.count("\n") == 1
    assert clm("plan", DEMO, "--offload", "host", "--machine", tmp_path / "mine.yaml").returncode == 0


def test_the_disk_of_this_machine_is_measured_where_the_scratch_folder_is(tmp_path: Path) -> None:
    arguments = ("--offload", "disk", "--scratch", tmp_path / "scratch", "--json")
    result = clm("plan", DEMO, *arguments)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["prediction"]["machine"]["disk_read_gb_s"] > 0 and facts["placement"]["resident_rows"] == 0
    assert facts["available"]["sources"]["disk"] == f"free at {tmp_path / 'scratch'}"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("device", ["1GiB", "400GiB"])
def test_a_refusal_names_flags_that_work(device: str) -> None:
    arguments = ["plan", DEMO, "--host-memory", "64GiB", "--gpu-memory", device, "--offload", "host"]
    refused = clm(*arguments, "--max-gaussians", "1B", "--json")
    assert refused.returncode == 3 and refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    facts = json.loads(refused.stdout)
    assert not facts["fits"] and facts["placement"] is facts["prediction"] is None
    assert facts["required"]["host_bytes"] == store_bytes(10**9) > facts["available"]["host_bytes"]
    host, fewer = (re.search(rf"`--{flag} (\S+?)`", refused.stderr)[1] for flag in ("host-memory", "max-gaussians"))
    gpu = re.search(r"`--gpu-memory (\S+?)`", refused.stderr)
    assert clm(*arguments, "--max-gaussians", fewer).returncode == 0
    more = [*arguments, "--max-gaussians", "1B", "--host-memory", host, *(("--gpu-memory", gpu[1]) if gpu else ())]
    assert clm(*more).returncode == 0


def test_a_view_too_large_for_the_gpu_is_planned_in_pieces() -> None:
    """What staging and the rasteriser take besides is counted as training counts it."""
    arguments = ("--gpu-memory", "20GiB", "--host-memory", "128GiB")
    whole, pieces = (facts_of(DEMO, *arguments, "--max-gaussians", count) for count in ("4M", "30M"))
    assert whole["pieces_of_the_largest_view"] == 1 < pieces["pieces_of_the_largest_view"] < 20
    assert pieces["fits"] and whole["warnings"] == pieces["warnings"] == []
    placement, largest = pieces["placement"], pieces["required"]["largest_view_bytes"]
    assert SLOT_BYTES * placement["arena_slots"] < largest
    assert (
        placement["device_bytes"]
        <= pieces["available"]["device_bytes"]
        < largest + pieces["required"]["beside_arena_bytes"]
    )
    per_image = pieces["traffic"]["per_image"]
    assert per_image["rows_lower_bound"] < per_image["rows_loaded"] <= per_image["rows_loaded_consecutive_reuse"]
    said = clm("plan", DEMO, *arguments, "--max-gaussians", "30M", "--machine", "rtx4090").stdout
    assert f"in {pieces['pieces_of_the_largest_view']} pieces" in said and "projected twice" in said


def test_a_device_too_small_for_any_piece_is_refused_with_a_flag_that_works() -> None:
    arguments = ("plan", DEMO, "--max-gaussians", "1M", "--machine", "rtx4090")
    refused = clm(*arguments, "--gpu-memory", "20MiB")
    assert refused.returncode == 3 and "Even in pieces it needs" in refused.stderr
    advised = re.search(r"`--gpu-memory (\S+?)`", refused.stderr)[1]
    assert clm(*arguments, "--gpu-memory", advised).returncode == 0


def test_moments_in_bf16_take_less_of_the_host() -> None:
    full, half = (
        facts_of(DEMO, "--max-gaussians", "20M", "--offload", "host", "--moments", m) for m in ("f32", "bf16")
    )
    assert full["required"]["host_bytes"] - half["required"]["host_bytes"] == 240 * 20_000_000
    assert half["prediction"]["lanes"]["update"] < full["prediction"]["lanes"]["update"]


def test_only_stated_memory_counts() -> None:
    machine, config = load_machine("rtx4090"), small_config(gpu_memory="100GiB", host_memory="1TiB")
    budgets = find_budgets(config, machine)
    assert (budgets.device.bytes, budgets.host.bytes) == (24 * 2**30, 128 * 2**30), "a flag cannot add memory"
    budgets = find_budgets(small_config(gpu_memory="8GiB", host_memory="16GiB"), machine)
    assert (budgets.device.bytes, budgets.host.bytes) == (8 * 2**30, 16 * 2**30)
    budgets = find_budgets(small_config(), machine)
    assert budgets.device.bytes == int(0.8 * 24 * 2**30) and budgets.host.bytes == int(0.8 * 128 * 2**30)
    budgets = find_budgets(small_config(host_memory="16GiB"), None)
    assert budgets.device.bytes == 16 * 2**30, "on the CPU the device's memory is the host's"


def test_rates_of_this_machine_predict_a_run_here(tmp_path: Path) -> None:
    """Within a factor of three, whatever else runs beside the tests; scripts/bench_simulate.py prints the real figure."""
    options = ("--offload", "host", "--downscale", "1", "--batch-size", "4", "--iterations", "80")
    facts = json.loads(clm("plan", DEMO, *options, "--json").stdout)
    run_demo(tmp_path / "run", downscale="1", offload="host", **FIXED)
    measured = read_json(tmp_path / "run" / "report.json")["images_per_second"]
    assert facts["prediction"]["machine"]["name"] == "this machine"
    assert 1 / 3 < facts["prediction"]["images_per_second"] / measured < 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((DEMO, "--machine", "cray"), "No machine file cray"), (("nowhere",), "nowhere"), ((DEMO, "--offload", "x"), "x")],
)
def test_bad_input_is_one_sentence(arguments: tuple[str | Path, ...], said: str) -> None:
    result = clm("plan", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_planning_imports_no_torch() -> None:
    code = (
        f"import sys; sys.argv = ['clm', 'plan', {str(DEMO)!r}]\n"
        "from clm.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print([name for name in ('torch', 'gsplat') if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stderr.strip().splitlines()[-1] == "[]", result.stderr
