"""What a run ran on, for its receipt: the machine, and the versions of what computed."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any

from clm import __version__, kernels

_PACKAGES = ("numpy", "torch", "gsplat", "pycolmap", "pillow")


def this_machine(device: str) -> dict[str, Any]:
    """Facts in words and numbers, null where the system does not say. device: cpu or cuda, which the run used."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu_name() if device == "cuda" else None,
        "kernels": kernels.variant(),
        "clm": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _cpu_name() -> str | None:
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _memory_bytes() -> int | None:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _gpu_name() -> str | None:
    """torch is there where the device is CUDA; it is not imported for this."""
    with suppress(Exception):
        return str(sys.modules["torch"].cuda.get_device_name())
    return None


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
