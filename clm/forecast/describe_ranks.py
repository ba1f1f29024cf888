"""What several ranks would do, as facts for programs and in words."""

from __future__ import annotations

import math
from typing import Any

from clm.forecast.forecast import Forecast
from clm.forecast.rank_tasks import PROJECT_SHARE
from clm.units import format_bytes


def rank_facts(forecast: Forecast) -> dict[str, Any]:
    """JSON-ready; bytes of `network` are those of splats and their gradients, per image, over the planned batches."""
    party, machine, timeline = forecast.party, forecast.machine, forecast.rank_timeline
    assert party is not None and machine is not None
    links, images = party.links, party.images
    hosts = math.ceil(party.ranks / machine.ranks_per_host)
    host_of = [int(rank // machine.ranks_per_host) for rank in range(party.ranks)]
    between = sum(int(links[a, b]) for a in range(party.ranks) for b in range(party.ranks) if host_of[a] != host_of[b])
    total, drawn = int(links.sum()), party.rows_drawn
    travelling = drawn * (1 - 1 / party.ranks)  # the rest is at home already, if ranks have as many of each view
    facts: dict[str, Any] = {
        "ranks": party.ranks,
        "hosts": hosts,
        "gaussians_per_rank": -(-forecast.gaussians // party.ranks),
        "busy_ranks": party.busy_ranks,
        "network": {
            "bytes_per_image": total / images,
            "bytes_per_image_between_hosts": between / images,
            "bytes_per_image_of_the_busiest_link": int(links.max()) / images,
            "bytes_per_row_and_view": total / travelling if travelling else 0.0,
            "links": (links / images).round(1).tolist(),
            "bytes_per_image_of_partial_pixels": party.pixel_bytes / images,
        },
        "rows_drawn_per_image": drawn / images,
        "rows_seen_per_image": party.rows_seen / images,
        "prediction": None,
    }
    if timeline is not None:
        facts["prediction"] = {
            "images_per_second": timeline.images_per_second,
            "seconds_per_batch": timeline.seconds_per_batch,
            "lanes": timeline.lanes,
            "network_exposed": timeline.network_exposed,
        }
    return facts


def rank_words(facts: dict[str, Any], forecast: Forecast) -> list[str]:
    """Some lines for people."""
    network, prediction, ranks = facts["network"], facts["prediction"], facts["ranks"]
    hosts = "one host" if facts["hosts"] == 1 else f"{facts['hosts']} hosts"
    lines = [f"ranks: {ranks} on {hosts}, {facts['gaussians_per_rank']:,} Gaussians each; memory above is of each rank"]
    if facts["busy_ranks"] < ranks - 0.01:
        lines.append(
            f"warning: batches of {forecast.config.batch_size} views leave {ranks - facts['busy_ranks']:.1f} of {ranks} ranks "
            f"without a view to rasterise, on average: --batch-size should be a multiple of {ranks}."
        )
    apart = (
        f", {format_bytes(round(network['bytes_per_image_between_hosts']))} of it between hosts"
        if facts["hosts"] > 1
        else ""
    )
    lines.append(
        f"network per image: {format_bytes(round(network['bytes_per_image']))} of splats and their gradients{apart}; "
        f"{network['bytes_per_row_and_view']:.0f} bytes for each of {facts['rows_drawn_per_image']:,.0f} rows that is elsewhere"
    )
    lines.append(
        f"  exchanging partial images instead of splats would take "
        f"{format_bytes(round(network['bytes_per_image_of_partial_pixels']))}"
    )
    if prediction is None:
        return [*lines, "prediction: none where rows of several ranks are on disk"]
    assert forecast.machine is not None
    busy = ", ".join(
        f"{lane.replace('_', ' ')} {seconds:.3g}" for lane, seconds in prediction["lanes"].items() if seconds
    )
    lines.append(
        f"prediction for {ranks} ranks, {forecast.machine.name}: {prediction['images_per_second']:.3g} images/s, "
        f"{prediction['seconds_per_batch']:.3g} s per batch"
    )
    lines.append(f"  lanes of a rank, seconds per batch: {busy}")
    lines.append(f"  {prediction['network_exposed']:.3g} s of a batch would be saved by a network that takes no time")
    return lines


def rank_assumptions(forecast: Forecast) -> list[str]:
    """What the numbers about ranks rest on, one sentence each."""
    sentences = [
        f"Projecting, there and back, is {PROJECT_SHARE:.0%} of what rendering costs by rows; the rest is where the view is.",
        "Ranks start each exchange together, and the cores of a host are shared out evenly among its ranks.",
    ]
    if forecast.machine is not None and forecast.machine.name == "this machine":
        sentences.append("All ranks are on this machine and talk over its loopback at 0.8 GB/s each.")
    return sentences
