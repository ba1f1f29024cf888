"""What a forecast may use of a machine: memory of device and host, disk, photos; and who says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from clm.config import Config
from clm.device.budget import AVAILABLE_SHARE, available_memory
from clm.files import free_bytes
from clm.forecast.machine import Machine
from clm.plan.budget import AUTO
from clm.units import parse_bytes


@dataclass(frozen=True)
class Budget:
    """Bytes that may be used, and who says so."""

    bytes: int
    source: str
    of_the_host: bool = False  # device memory that the host's budget holds: the store takes its part of it


@dataclass(frozen=True)
class Budgets:
    device: Budget
    host: Budget
    disk: Budget
    photos: Budget


def find_budgets(config: Config, machine: Machine | None, ranks: int = 1) -> Budgets:
    """What is there: what flags (or a preset, or a file) state, else what the machine has, less a part left free. ranks: that run;
    budgets are those of each, and what a host has is shared by its ranks."""
    memory = available_memory() if machine is None else machine.host_memory
    owner = "this machine has free" if machine is None else f"{machine.name} has"
    sharers = math.ceil(min(ranks, ranks if machine is None else machine.ranks_per_host))
    memory, whose = memory // sharers, f" for each of its {sharers} ranks" if sharers > 1 else ""
    host = Budget(int(AVAILABLE_SHARE * memory), f"{AVAILABLE_SHARE:.0%} of what {owner}{whose}")
    if config.host_memory != "auto":
        host = Budget(parse_bytes(config.host_memory), "--host-memory")
        if machine is not None and host.bytes > memory:
            host = Budget(memory, f"all that {machine.name} has")
    if config.gpu_memory != AUTO:
        device = Budget(parse_bytes(config.gpu_memory), "--gpu-memory")
    elif machine is None:
        device = Budget(host.bytes, "the host's, as the CPU is the device", of_the_host=True)
    else:
        device = Budget(
            int(AVAILABLE_SHARE * machine.device_memory), f"{AVAILABLE_SHARE:.0%} of what {machine.name} has"
        )
    if (
        machine is not None and device.bytes > machine.device_memory
    ):  # a statement beyond the machine counts as all of it
        device = Budget(machine.device_memory, f"100% of what {machine.name} has")
    here = "free here" if config.scratch is None else f"free at {config.scratch}"
    disk = Budget(free_bytes(scratch_folder(config)), here) if machine is None else Budget(machine.disk, machine.name)
    disk = replace(disk, bytes=disk.bytes // sharers, source=disk.source + whose)
    return Budgets(device, host, disk, Budget(parse_bytes(config.image_cache), "image_cache"))


def scratch_folder(config: Config) -> Path:
    """The folder of the scratch file; where a run would be, if nothing else is said."""
    return Path(config.scratch or ".").resolve()
