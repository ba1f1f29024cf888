"""The budgets of device and host: what `--gpu-memory` and `--host-memory` state, or what is free when they say `auto`.
Training, rendering and evaluation ask here; the run is told where the number comes from.

A budget never changes the model, so a statement beyond what is free is taken down to what works, and said.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clm.device.interface import Device
from clm.errors import ResourceError
from clm.plan.budget import AUTO, store_bytes, store_row_bytes
from clm.units import format_bytes, parse_bytes

AVAILABLE_SHARE = 0.8  # of free memory counts as available where no flag states a budget
_RESERVE, _RESERVED_SHARE = 512 << 20, 0.03  # left of a device: kernels that load later, a desktop that wants more


@dataclass(frozen=True)
class DeviceBudget:
    """Bytes for arena, resident rows and temporaries. None: the device's memory is the host's, and no limit of its own was
    stated; then rows, wherever they live, and the arena share the host's budget."""

    bytes: int | None
    reason: str = ""  # one sentence for the user, where the number was not their own

    def beside(self, rows: int, moments: str, host_budget: int, offload: str = "host") -> int:
        """Bytes for the device where `rows` rows are stored; of the host's budget, what the store leaves (offload "host"), or
        all of it, where the rows are resident and count there ("auto", "none")."""
        if self.bytes is not None:
            return self.bytes
        return host_budget - (store_bytes(rows, store_row_bytes(moments)) if offload == "host" else 0)


def reserve_bytes(total: int) -> int:
    """What is left free of a device with so much memory."""
    return max(_RESERVE, int(_RESERVED_SHARE * total))


def find_device_budget(text: str, device: Device, say: Callable[[str], None] = lambda text: None) -> DeviceBudget:
    """The budget that `text` (--gpu-memory) states for this device; `say` hears a statement that exceeds what is free.

    Asked before anything is allocated. Raises ResourceError where the device has nothing left.
    """
    memory = device.free_memory()
    stated = None if text == AUTO else parse_bytes(text)
    if memory is None:
        return DeviceBudget(stated)
    free, total = memory
    reserve = reserve_bytes(total)
    if free <= reserve:
        raise ResourceError(
            f"Of the device's {format_bytes(total)} only {format_bytes(free)} is free, and {format_bytes(reserve)} must stay so.",
            "End other programs that use it (nvidia-smi lists them), or pass --device cpu.",
        )
    free_now, usable = format_bytes(free), free - reserve
    if stated is None:
        reason = f"gpu-memory auto: {format_bytes(usable)}, because {free_now} of the device is free"
        return DeviceBudget(usable, f"{reason} and {format_bytes(reserve)} stays so")
    if stated > free:
        say(
            f"--gpu-memory {text} exceeds the {free_now} that is free on the device: the budget is {format_bytes(usable)}, "
            f"as `--gpu-memory {usable >> 20}MiB` says."
        )
        return DeviceBudget(usable)
    return DeviceBudget(stated)


def available_memory() -> int:
    """Bytes of RAM that are free or reclaimable now."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
