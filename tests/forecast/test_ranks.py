"""Several ranks, foreseen: what they send each other, byte by byte, and what keeps them from being as many times as fast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clm.errors import ClmError
from clm.forecast.links import exchanges, link_bytes, pixel_bytes
from clm.forecast.machine import Machine, load_machine
from clm.forecast.ranks import Party, Sharing, check_network, simulate_party
from clm.plan.residency import make_plan
from tests.demo_run import DEMO, clm
from tests.forecast.test_simulate import CPU, GPU

FAST = {"link_gb_s": 1e9, "network_gb_s": 1e9, "network_us": 0.0}


def test_every_drawn_row_that_is_elsewhere_takes_sixty_bytes_there_and_forty_back() -> None:
    rng = np.random.default_rng(0)
    for world in (1, 2, 3, 5):
        for views in (1, 2, 5, 7):
            drawn = rng.integers(0, 1000, (views, world)).astype(float)
            drawn[rng.random(drawn.shape) < 0.2] = 0
            links = np.zeros((world, world), np.int64)
            for k in range(views):
                for rank in range(world):
                    links[rank, k % world] += 60 * int(drawn[k, rank])
                    links[k % world, rank] += 40 * int(drawn[k, rank]) + 40
            links += 8 * -(-views // world)
            np.fill_diagonal(links, 0)
            assert np.array_equal(link_bytes(drawn), links)
            assert len(exchanges(drawn)) == -(-views // world)


def test_images_of_ranks_would_be_exchanged_where_a_rank_has_rows_of_a_view() -> None:
    drawn = np.array([[5.0, 3.0], [0.0, 3.0], [2.0, 0.0]])
    assert pixel_bytes(drawn, np.array([100.0, 100.0, 10.0])) == 32 * 100


def test_rows_are_shared_out_in_ranges_and_counted_from_each_ranks_first() -> None:
    sharing = Sharing(10, 3)
    parts = sharing.split(np.array([0, 2, 3, 5, 6, 9], np.int32))
    assert [part.tolist() for part in parts] == [[0, 2], [0, 2], [0, 3]]
    assert list(sharing.noting([np.array([6, 7, 8, 9])])) and sharing.largest_view == 4


def a_party(ranks: int, batch: int = 8, seen: int = 40) -> Party:
    """Two batches of views that see as much of every rank's rows."""
    rng, rows = np.random.default_rng(1), 400
    sharing, plans, drawn, orders = Sharing(rows, ranks), [], [], []
    for _ in range(2):
        sets = [np.sort(rng.permutation(rows)[:seen]).astype(np.int32) for _ in range(batch)]
        by_rank = list(zip(*(sharing.split(rows) for rows in sets), strict=True))
        plans.append(tuple(make_plan(range(batch), list(theirs), 4 * seen, 4, ranks=ranks) for theirs in by_rank))
        drawn.append(1e3 * np.array([[len(part) for part in sharing.split(rows)] for rows in sets]))
        orders.append(list(range(batch)))
    residents = tuple(np.zeros(rows // ranks + 1, bool) for _ in range(ranks))
    pixels = tuple(np.full(batch, 1e6) for _ in range(2))
    return Party(ranks, tuple(orders), tuple(plans), tuple(drawn), pixels, residents, 1e3, False)


def machine(ranks: int, like: Machine = GPU, **values: float) -> Machine:
    return replace(like, ranks_per_host=float(ranks), **{**FAST, **values})


def test_ranks_with_a_device_each_and_a_perfect_network_are_nearly_so_many_times_as_fast() -> None:
    device_bound = {"host_gather_gb_s": 1e6, "host_adam_gb_s": 1e6, "plan_ns_per_row": 0.0}
    one = simulate_party(a_party(1), machine(1, **device_bound)).images_per_second
    for ranks in (2, 4):
        several = simulate_party(a_party(ranks), machine(ranks, **device_bound)).images_per_second
        assert 0.6 * ranks * one < several < 1.05 * ranks * one


def test_ranks_that_share_the_cores_of_a_host_are_no_faster_than_one() -> None:
    one = simulate_party(a_party(1), machine(1, CPU, plan_ns_per_row=0.0)).images_per_second
    two = simulate_party(a_party(2), machine(2, CPU, plan_ns_per_row=0.0)).images_per_second
    assert 0.5 * one < two < 1.3 * one


def test_a_slower_network_is_never_faster_and_what_it_costs_is_said() -> None:
    party, before = a_party(4), 0.0
    for rate in (1e9, 10.0, 0.1, 0.01):
        timeline = simulate_party(party, machine(2, link_gb_s=rate, network_gb_s=rate))
        assert timeline.seconds_per_batch >= before
        before = timeline.seconds_per_batch
    assert timeline.network_exposed > 0.5 * timeline.seconds_per_batch
    assert timeline.lanes["network"] > 0


def test_a_machine_must_say_how_fast_its_ranks_talk() -> None:
    with pytest.raises(ClmError, match="link_gb_s"):
        check_network(replace(GPU, ranks_per_host=2.0), 2)
    with pytest.raises(ClmError, match="network_gb_s"):
        check_network(replace(GPU, ranks_per_host=2.0, link_gb_s=1.0), 4)
    check_network(GPU, 1)
    for name in ("host-8xh100", "cluster-16x4"):
        check_network(load_machine(name), 64)


def test_the_command_says_what_ranks_need_send_and_reach(tmp_path: Path) -> None:
    done = clm("plan", DEMO, "--ranks", "8", "--batch-size", "4", "--machine", "cluster-16x4", "--downscale", "4")
    assert done.returncode == 0, done.stderr
    assert "ranks: 8 on 2 hosts" in done.stdout and "network per image: " in done.stdout
    assert (
        "leave 4.0 of 8 ranks without a view" in done.stdout and "--batch-size should be a multiple of 8" in done.stdout
    )
    assert "partial images" in done.stdout and "prediction for 8 ranks, hosts with four A100" in done.stdout
    refused = clm("plan", DEMO, "--ranks", "2", "--machine", "rtx4090")
    assert refused.returncode == 2 and "network_gb_s" in refused.stderr
