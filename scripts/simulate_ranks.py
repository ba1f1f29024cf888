"""How far ranks scale, on machines that a file describes: nothing is run, plans of a scene are simulated as by `clm plan --ranks`.

    python scripts/simulate_ranks.py [--scene SCENE] [--machines NAME ...] [--ranks 1 2 4 8 16 32 64] [--rows 300k 1M 3M]

strong: batches of 64 views, whatever the number of ranks. weak: batches of 4 views a rank. The model is so large that a view
draws --rows of them on average; linear is so many times one rank, which has a machine's memory for itself. What it rests on is
printed at the end: assumptions of the machine files, and of the simulator.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bench_common import SCENES, header

from clm.commands.plan import assumptions
from clm.forecast.budgets import find_budgets
from clm.forecast.describe_ranks import rank_facts
from clm.forecast.forecast import Forecast, make_forecast
from clm.forecast.machine import Machine, load_machine
from clm.forecast.ranks import simulate_party
from clm.scene import Scene
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.units import parse_count

STRONG, WEAK = 64, 4  # views of a batch; of a batch and rank


def foreseen(scene: Scene, machine: Machine, ranks: int, batch: int, gaussians: int) -> Forecast:
    options = {"batch_size": batch, "max_gaussians": gaussians, "iterations": 8 * batch, "offload": "auto"}
    config = load_config({**options, "seed": 1})
    return make_forecast(scene, config, find_budgets(config, machine, ranks), machine, ranks)


def model_size(scene: Scene, machine: Machine, rows: int) -> int:
    """Gaussians of which a view draws so many: its visible set is about as large."""
    trial = foreseen(scene, machine, 1, 16, 1_000_000)
    seen = [len(turn.view_rows) for plan in trial.plans for turn in plan.turns if turn.renders]
    return math.ceil(rows / (sum(seen) / len(seen) / trial.store.rows))


def images_per_second(forecast: Forecast, late: int) -> float:
    timeline = forecast.timeline or forecast.rank_timeline
    if late and forecast.party is not None and forecast.machine is not None:
        timeline = simulate_party(forecast.party, forecast.machine, late=late)
    return timeline.images_per_second if timeline is not None else math.nan


def table(scene: Scene, machine: Machine, counts: list[int], gaussians: int, kind: str, late: int) -> Forecast | None:
    one, last = math.nan, None
    for ranks in counts:
        batch = STRONG if kind == "strong" else WEAK * ranks
        forecast = foreseen(scene, machine, ranks, batch, gaussians)
        if forecast.placement is None:
            print(f"| {kind} | {ranks} | {batch} | refused: too little memory | | | |")
            continue
        speed = images_per_second(forecast, late)
        one = speed / ranks if math.isnan(one) else one  # of the smallest number that fits, where one does not
        network = ""
        if forecast.party is not None and forecast.rank_timeline is not None:
            facts, timeline = rank_facts(forecast)["network"], forecast.rank_timeline
            exposed = timeline.network_exposed / timeline.seconds_per_batch
            network = f"{facts['bytes_per_image'] / 1e6:.0f} | {facts['bytes_per_image_between_hosts'] / 1e6:.0f} | {exposed:.0%}"
            last = forecast
        else:
            network = "0 | 0 | 0%"
        print(f"| {kind} | {ranks} | {batch} | {speed:.1f} | {speed / ranks / one:.2f} | {network} |", flush=True)
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="caliterra", help="a name in SCENES, or a folder")
    parser.add_argument("--machines", nargs="+", default=["host-8xh100", "cluster-16x4"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rows", nargs="+", default=["1M"], help="that a view draws")
    parser.add_argument("--kinds", nargs="+", default=["strong", "weak"])
    parser.add_argument("--late", type=int, default=0, help="what if gradients were added so many groups later")
    options = parser.parse_args()
    print(header())
    path = SCENES / options.scene if (SCENES / options.scene).exists() else Path(options.scene)
    scene = open_scene(path, load_config({}), require_images=False, masks=None)
    last = None
    for name in options.machines:
        machine = load_machine(name)
        counts = [count for count in options.ranks if machine.network_gb_s or count <= machine.ranks_per_host]
        for text in options.rows:
            gaussians = model_size(scene, machine, parse_count(text, "--rows"))
            print(f"\n{machine.name}; {path.name}, {gaussians:,} Gaussians, {text} rows a view\n")
            print(
                "| scaling | ranks | views a batch | images/s | of linear | MB an image | between hosts | network exposed |"
            )
            print("|---|---:|---:|---:|---:|---:|---:|---:|")
            for kind in options.kinds:
                last = table(scene, machine, counts, gaussians, kind, options.late) or last
    if last is not None:
        print("\nassumptions:", *(f"  {sentence}" for sentence in assumptions(last)), sep="\n")


if __name__ == "__main__":
    main()
