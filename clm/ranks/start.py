"""Ranks come to life, and end together. `torchrun` starts them, torch.distributed carries what they say: gloo between hosts,
nccl between GPUs.

Each lane has a process group, because gloo mixes what two threads send on one. Their calls wait for `timeout` seconds; the watch
(`clm.ranks.watch`) has a group whose calls wait for ever. One process alone imports no torch here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from clm.errors import ClmError, RankLost
from clm.ranks.meet import meet
from clm.ranks.place import Place
from clm.ranks.ranks import ALONE, Ranks
from clm.ranks.watch import Message, Watch

TIMEOUT = 600.0  # seconds that a rank waits for others, unless it is told otherwise
_ARRIVAL_SECONDS = 300.0  # that ranks get to start, whatever the timeout
_FOR_EVER = timedelta(days=365)


@contextmanager
def ranks_of_environment(timeout: float = TIMEOUT, device: str = "auto") -> Iterator[Ranks]:
    """The ranks that this process is one of, as torchrun says in the environment; ALONE otherwise.

    timeout: seconds after which a call to ranks that do not answer ends all of them. device: of `--device`; each rank of a host
    takes the GPU of its local number. Leaving with an exception ends the other ranks as well, unless `together` raised it on
    all of them. Raises ClmError for an environment that names no ranks, RankLost where one does not come."""
    place = Place.of_environment()
    if place is None:
        yield ALONE
        return
    _take_gpu(place, device)
    ranks, watch = _join(place, timeout)
    try:
        yield ranks
    except BaseException as error:
        if getattr(error, "of_all_ranks", False):
            ranks.close()
        else:
            watch.fail()
        raise
    ranks.close()


def _take_gpu(place: Place, device: str) -> None:
    """The GPU of this rank is the only one that its process sees, in all of its threads. Before anything of CUDA is touched."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "cpu" or shown == "":
        return
    names = [str(number) for number in range(place.local_world)] if shown is None else shown.split(",")
    if place.local_rank >= len(names):
        raise ClmError(
            f"{place.name} is number {place.local_rank} of its host, where CUDA_VISIBLE_DEVICES shows {len(names)} GPUs.",
            f"Start {len(names)} ranks there (--nproc-per-node {len(names)}), or pass --device cpu.",
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = names[place.local_rank]


def _join(place: Place, timeout: float) -> tuple[Ranks, Watch]:
    import torch.distributed as dist

    from clm.ranks.joined import JoinedRanks

    arrival = timedelta(seconds=_ARRIVAL_SECONDS)
    try:
        serves = place.rank == 0 and not place.of_agent
        store = dist.TCPStore(
            place.address, place.port, place.world, is_master=serves, timeout=arrival, wait_for_workers=False
        )
        attempt = meet(dist.PrefixStore("clm", store), place.rank, place.world, _ARRIVAL_SECONDS)
        ours = dist.PrefixStore(f"clm/{attempt}", store)
        dist.init_process_group("gloo", store=ours, rank=place.rank, world_size=place.world, timeout=arrival)
    except (RuntimeError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RankLost(
            f"{place.name} does not reach the others at {place.address}:{place.port}: {why}.",
            "Look at what the others said, and whether the hosts reach each other (GLOO_SOCKET_IFNAME names the network to use).",
        ) from None
    members: list[Any] = [None] * place.world
    dist.all_gather_object(members, (place.host, place.name))
    watch = Watch(_Wire(dist.new_group(backend="gloo", timeout=_FOR_EVER)), place.rank, members, timeout)
    backend = "cpu:gloo,cuda:nccl" if _all_have_gpus(place.world) else "gloo"

    def new_group(_lane: str) -> Any:
        with watch.talking():
            return dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))

    ranks = JoinedRanks(
        place.rank, place.world, place.local_rank, place.local_world, new_group, watch.goodbye, watch.talking
    )
    return ranks, watch


def _all_have_gpus(world: int) -> bool:
    import torch
    import torch.distributed as dist

    have: list[Any] = [None] * world
    dist.all_gather_object(have, torch.cuda.is_available() and dist.is_nccl_available())
    return all(have)


class _Wire:
    """Lines between ranks over a process group of their own: a message is three numbers."""

    def __init__(self, group: Any):
        self._group = group

    def send(self, message: Message, to: int) -> None:
        import torch
        import torch.distributed as dist

        dist.send(torch.tensor(message, dtype=torch.int64), dst=to, group=self._group)

    def receive(self, source: int) -> Message:
        import torch
        import torch.distributed as dist

        heard = torch.empty(3, dtype=torch.int64)
        dist.recv(heard, src=source, group=self._group)
        return Message(*heard.tolist())
