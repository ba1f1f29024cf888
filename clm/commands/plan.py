"""`clm plan`: a dry run. The forecast of `clm.forecast.forecast` as facts for programs and as text for people."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from clm.device.choose import cuda_devices
from clm.forecast.budgets import Budget, Budgets, find_budgets
from clm.forecast.describe import draw_timeline
from clm.forecast.describe_ranks import rank_assumptions, rank_facts, rank_words
from clm.forecast.forecast import Forecast, make_forecast
from clm.forecast.machine import load_machine
from clm.forecast.measure import THIS
from clm.forecast.simulate import Timeline, bus_bytes
from clm.forecast.turns import count_turn
from clm.kernels.rows import colour_columns
from clm.optim.schedules import sh_degree_at
from clm.plan.budget import (
    CULL_BYTES,
    GROWN_FILL,
    arena_bytes,
    frame_bytes,
    in_core_bytes,
    paged_bytes,
    resident_row_bytes,
    scratch_bytes,
    scratch_room,
    staging_bytes,
    store_bytes,
    store_row_bytes,
)
from clm.plan.placement import fewest_slots
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.store.frames import LEAST_FRAMES
from clm.units import format_bytes

PLY_ROW_BYTES = 4 * 62  # INRIA's columns, padded to SH degree 3


def plan_run(
    data: Path, flags: dict[str, Any], preset: str | None, file: Path | None, machine: str, ranks: int = 1
) -> Forecast:
    """What `clm train` would do with the same options. machine: `this`, a YAML file, or a name in configs/machines. ranks: that
    torchrun starts, as many on each host as the machine file says."""
    config = load_config(flags, preset=preset, file=file)
    described = None if machine == "this" else load_machine(machine)
    scene = open_scene(data, config, require_images=False, masks=None)
    return make_forecast(scene, config, find_budgets(config, described, ranks), described, ranks)


def forecast_facts(forecast: Forecast) -> dict[str, Any]:
    """The answer as one JSON-ready dictionary."""
    placement, refused = forecast.placement, forecast.refused
    return {
        "scene": _scene_facts(forecast),
        "required": _required(forecast),
        "available": {
            f"{name}_bytes": budget.bytes for name, budget in _each(forecast.budgets)
        } | {"sources": {name: budget.source for name, budget in _each(forecast.budgets)}},
        "fits": placement is not None,
        "pieces_of_the_largest_view": forecast.pieces,
        "placement": None if placement is None else dataclasses.asdict(placement),
        "reason": placement.reason if placement is not None else str(refused),
        "traffic": _traffic(forecast) if forecast.plans else None,
        "prediction": _prediction(forecast) if forecast.plans else None,
        **({"ranks": rank_facts(forecast)} if forecast.party else {}),
        "warnings": warnings(forecast),
        "assumptions": assumptions(forecast),
    }  # fmt: skip


def _each(budgets: Budgets) -> list[tuple[str, Budget]]:
    return [(field.name, getattr(budgets, field.name)) for field in dataclasses.fields(budgets)]


def _scene_facts(forecast: Forecast) -> dict[str, Any]:
    scene = forecast.scene
    return {
        "path": str(scene.path),
        "views": len(scene.views),
        "train": len(scene.train),
        "points": len(scene.points),
        "gaussians": forecast.gaussians,
        "gaussians_per_planned_row": forecast.scale,
        "largest_view": forecast.largest_view,
    }


def _required(forecast: Forecast) -> dict[str, int]:
    """Bytes that the run needs where it is placed; for a refused one, the least that would do with the rows on the host, or on
    disk where they would go there."""
    placement, config, whole = forecast.placement, forecast.config, forecast.gaussians
    gaussians, pages = -(-whole // forecast.ranks), -(-forecast.pages // forecast.ranks)  # of this rank
    store = store_bytes(gaussians, store_row_bytes(config.moments))
    on_cpu = forecast.machine is None or forecast.machine.on_cpu
    least = arena_bytes(fewest_slots(forecast.largest_view))
    scratch = scratch_bytes(pages, config.moments)
    on_disk = store > forecast.budgets.host.bytes and scratch <= scratch_room(forecast.budgets.disk.bytes)
    if config.offload != "disk" and not (config.offload == "auto" and on_disk):
        scratch = 0
    paged = paged_bytes(gaussians, pages) + LEAST_FRAMES * frame_bytes(moments=config.moments)
    host = paged if scratch else store
    device = least
    if placement is not None:
        device, host, scratch = placement.device_bytes, placement.host_bytes, placement.disk_bytes
    checkpoint = whole * (store_row_bytes(config.moments) - CULL_BYTES)  # cull entries are recomputed
    copies = config.keep_checkpoints + 1 if config.save_every != 0 else 1  # the new one is whole before an old one goes
    training = [forecast.scene.views[k] for k in forecast.scene.train]
    return {
        "device_bytes": device,
        "host_bytes": host,
        "disk_bytes": copies * checkpoint + whole * PLY_ROW_BYTES + scratch,
        "scratch_bytes": scratch,
        "photos_bytes": sum(view.nbytes for view in training),
        "staging_bytes": staging_bytes(forecast.largest_view, on_cpu),
        "beside_arena_bytes": forecast.beside_arena,
        "largest_view_bytes": arena_bytes(forecast.largest_view),
        "in_core_bytes": in_core_bytes(gaussians, forecast.largest_view, resident_row_bytes(config.moments, on_cpu)),
        "device_bytes_per_unloaded_gaussian": 0,
    }


def warnings(forecast: Forecast) -> list[str]:
    """What does not refuse the run, but may stop it."""
    required, budgets, said = _required(forecast), forecast.budgets, []
    if forecast.placement is None:
        return []
    if required["disk_bytes"] > budgets.disk.bytes:
        scratch = "the scratch file, " if required["scratch_bytes"] else ""
        said.append(f"The disk has too little room for {scratch}the checkpoint and the PLY, if all are to lie on one.")
    on_disk = forecast.placement.offload == "disk"  # frames leave room for staging
    if not on_disk and required["host_bytes"] + required["staging_bytes"] > budgets.host.bytes:
        said.append("Staging does not fit into the host budget beside the store.")
    if forecast.machine is not None and forecast.machine.name == THIS and cuda_devices():
        said.append("The rates are those of the CPU: name a machine file with a GPU like the one here.")
    return said


def _traffic(forecast: Forecast) -> dict[str, Any]:
    """Rows and bytes per image that cross the bus, over the planned batches, at the run's full SH degree; and the first
    batches one by one, at the degree that they will have. The other policies load from a store without resident rows."""
    scale, config, timeline = forecast.scale, forecast.config, forecast.timeline
    assert timeline is not None
    images, batches, first = timeline.images, [], 0
    totals = {"rows_loaded": 0.0, "rows_loaded_resident": 0.0, "rows_lower_bound": 0.0}
    totals |= {"rows_loaded_no_reuse": 0.0, "rows_loaded_consecutive_reuse": 0.0}
    for plan in forecast.plans:
        counts = [count_turn(turn, 0, forecast.resident, scale) for turn in plan.turns]
        loaded, sent = bus_bytes(counts, colour_columns(sh_degree_at(config, first)), config.colour_bus)
        rows = sum(part.rows for turn in counts for part in turn.loads)
        batches.append({"rows_loaded": round(rows), "bytes_loaded": loaded, "bytes_sent_back": sent})
        first += len(plan.views)
        totals["rows_loaded"] += rows
        totals["rows_loaded_resident"] += sum(part.resident for turn in counts for part in turn.loads)
        totals["rows_lower_bound"] += sum(turn.final for turn in counts)  # each row is final once
        totals["rows_loaded_no_reuse"] += scale * plan.traffic.no_reuse
        totals["rows_loaded_consecutive_reuse"] += scale * plan.traffic.consecutive_reuse
    per_image = {name: round(count / images) for name, count in totals.items()}
    per_image |= {
        "bytes_loaded": timeline.bytes_loaded // images,
        "bytes_sent_back": timeline.bytes_sent_back // images,
    }
    disk = {"disk": _disk_traffic(timeline)} if timeline.paging else {}
    return {"images": images, "batches": len(batches), "per_image": per_image, "first_batches": batches, **disk}


def _disk_traffic(timeline: Timeline) -> dict[str, Any]:
    """What the disk does once the run has gone on for an epoch; with the names of `report.json` where it says the same."""
    paging = timeline.paging
    assert paging is not None
    return {
        "bytes_read_per_image": round(paging.bytes_read / timeline.images),
        "bytes_written_per_image": round(paging.bytes_written / timeline.images),
        "hit_rate": paging.hit_rate,
        "misses_of_lru": paging.of_lru,
        "hidden_fraction": timeline.disk_hidden_fraction,
    }


def _prediction(forecast: Forecast) -> dict[str, Any]:
    timeline, machine = forecast.timeline, forecast.machine
    assert timeline is not None and machine is not None
    shown = min(1, timeline.batches - 1)  # the first batch that follows another one
    spans = [span for span in timeline.spans if span.batch == shown]
    begin = min(span.start for span in spans)
    return {
        "machine": {name: value for name, value in dataclasses.asdict(machine).items() if name != "notes"},
        "images_per_second": timeline.images_per_second,
        "seconds_per_batch": timeline.seconds_per_batch,
        "hidden_fraction": timeline.hidden_fraction,
        "lanes": {name: seconds / timeline.batches for name, seconds in timeline.lanes.items()},
        "exposed": timeline.exposed / timeline.batches,
        "plan_exposed": timeline.plan_exposed / timeline.batches,
        "timeline": [
            {
                "lane": s.lane,
                "worker": s.worker,
                "name": s.name,
                "turn": s.turn,
                "start": s.start - begin,
                "end": s.end - begin,
            }
            for s in spans
        ],
    }


def assumptions(forecast: Forecast) -> list[str]:
    """What the answer rests on, one sentence each."""
    sentences = [
        "Views see the share of the Gaussians that they see of the scene's points.",
        "Image sizes are those that the COLMAP model states.",
        "Photos are decoded before they are needed.",
        f"Spherical harmonics are at degree {forecast.config.sh_degree}, as in most of a run.",
        "Gaussians stay as many as they are: densification, evaluation and checkpoints take no time.",
    ]
    if forecast.scale > 1:
        sentences.insert(0, f"Each of the scene's points stands for {forecast.scale:,.0f} Gaussians.")
    elif forecast.config.max_gaussians is None:
        sentences.insert(0, "The run stays at the scene's points; name the size it grows to with --max-gaussians.")
    if forecast.placement is not None and forecast.placement.offload == "disk":
        sentences.append(
            f"Pages of what has grown are {GROWN_FILL:.0%} full; pages are read ahead into half of what holds them."
        )
    if forecast.pieces > 1:
        sentences.append(
            "The image of a view in pieces takes as long as that of a whole one; its rows are projected twice."
        )
    if forecast.party is not None:
        sentences += rank_assumptions(forecast)
    if forecast.machine is not None:
        sentences += [f"{key}: {note}" for key, note in forecast.machine.notes]
    return sentences


def format_forecast(forecast: Forecast, as_json: bool) -> str:
    """Facts as JSON, or as text for people."""
    facts = forecast_facts(forecast)
    if as_json:
        return json.dumps(facts, indent=2)
    scene = facts["scene"]
    points, count = scene["points"], scene["gaussians"]
    stand_in = (
        f" standing for {count:,} Gaussians"
        if count > points
        else f", {count:,} of them kept"
        if count < points
        else ""
    )
    lines = [f"{scene['path']}: {scene['views']} views ({scene['train']} train), {scene['points']:,} points{stand_in}"]
    lines += _needs(facts)
    if forecast.placement is None:
        return "\n".join(lines)
    lines += [f"warning: {text}" for text in facts["warnings"]]
    lines += [f"placement: {facts['reason']}"]
    if forecast.party is not None:
        lines += rank_words(facts["ranks"], forecast)
    else:
        lines += [*_moves(facts["traffic"], scene, forecast), *_disk_words(facts["traffic"]), *_speed(forecast)]
    lines += ["assumptions:", *(f"  {sentence}" for sentence in facts["assumptions"])]
    return "\n".join(lines)


def _needs(facts: dict[str, Any]) -> list[str]:
    required, available = facts["required"], facts["available"]
    lines = [f"{'':12} {'needed':>12} {'available':>12}"]
    for name in available["sources"]:
        needed, there = required[f"{name}_bytes"], available[f"{name}_bytes"]
        short = "" if needed <= there else "  too little" if name in ("device", "host", "disk") else "  decoded again"
        numbers = f"{format_bytes(needed):>12} {format_bytes(there):>12}"
        lines.append(f"{name:12} {numbers}  ({available['sources'][name]}){short}")
    if required["scratch_bytes"]:
        lines.append(
            f"{'scratch':12} {format_bytes(required['scratch_bytes']):>12}  of the disk, for the rows themselves"
        )
    if required["staging_bytes"]:
        lines.append(f"{'staging':12} {format_bytes(required['staging_bytes']):>12}  besides, on the host")
    lines.append(f"{'':12} device bytes per Gaussian that is not loaded: 0")
    return lines


def _moves(traffic: dict[str, Any], scene: dict[str, Any], forecast: Forecast) -> list[str]:
    per, batch = traffic["per_image"], forecast.config.batch_size
    loaded, resident = per["rows_loaded"], per["rows_loaded_resident"]
    if not loaded:
        return [f"traffic: nothing crosses the bus ({_largest(scene, forecast)})"]
    line = f"traffic per image, batches of {batch}: {loaded:,} rows loaded, {format_bytes(per['bytes_loaded'])} in, "
    line += f"{format_bytes(per['bytes_sent_back'])} back ({_largest(scene, forecast)})"
    others = (
        f"  {loaded / max(1, per['rows_lower_bound']):.2f} times the lower bound; keeping only what the last view used "
    )
    others += f"would load {per['rows_loaded_consecutive_reuse']:,}"
    return [line, others, *([f"  {resident:,} more are resident: they move inside the device"] if resident else [])]


def _disk_words(traffic: dict[str, Any]) -> list[str]:
    if "disk" not in traffic:
        return []
    disk = traffic["disk"]
    read, written = (format_bytes(disk[f"bytes_{name}_per_image"]) for name in ("read", "written"))
    line = (
        f"disk per image: {read} read, {written} written; {disk['hit_rate']:.0%} of the pages asked for are in memory, "
    )
    return [line + f"{disk['misses_of_lru']:.2f} of LRU's misses; {disk['hidden_fraction']:.0%} of its work is hidden"]


def _largest(scene: dict[str, Any], forecast: Forecast) -> str:
    pieces = f" in {forecast.pieces:,} pieces" if forecast.pieces > 1 else ""
    return f"largest view: {scene['largest_view']:,}{pieces}"


def _speed(forecast: Forecast) -> list[str]:
    timeline, machine = forecast.timeline, forecast.machine
    assert timeline is not None and machine is not None
    busy = ", ".join(
        f"{lane.replace('_', ' ')} {seconds / timeline.batches:.3g}"
        for lane, seconds in timeline.lanes.items()
        if seconds
    )
    exposed, planning = timeline.exposed / timeline.batches, timeline.plan_exposed / timeline.batches
    return [
        f"prediction for {machine.name}: {timeline.images_per_second:.3g} images/s, "
        f"{timeline.seconds_per_batch:.3g} s per batch",
        f"  lanes, seconds per batch: {busy}",
        f"  {timeline.hidden_fraction:.0%} of moving and updating is hidden; exposed {exposed:.3g} s, plan {planning:.3g} s",
        *(f"  {line}" for line in draw_timeline(timeline, min(1, timeline.batches - 1))),
    ]
