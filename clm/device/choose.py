"""Which device a run uses, and what renders on it. torch is imported only where CUDA is asked for or present."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from clm.device.cpu import CpuDevice
from clm.device.interface import Device
from clm.errors import ClmError
from clm.render import CpuRasterizer, Rasterizer

DEVICES = ("auto", "cpu", "cuda")


def cuda_devices() -> int:
    """How many devices the CUDA driver has; 0 without a driver. Asks the driver itself: importing torch takes seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if ready else 0


def open_device(
    choice: str, *, antialiased: bool = False, absgrad: bool = False, say: Callable[[str], None] = lambda text: None
) -> tuple[Device, Rasterizer]:
    """The device and its rasteriser. `auto` takes CUDA where it works, and says why where a device is there but does not.

    Raises ClmError when CUDA is asked for and cannot be used, or for an unknown choice.
    """
    if choice not in DEVICES:
        raise ClmError(f"Unknown --device {choice!r}.", f"Choose one of {', '.join(DEVICES)}.")
    if choice == "cuda" or (choice == "auto" and cuda_devices()):
        try:
            return _open_cuda(antialiased, absgrad, say)
        except ClmError as error:
            if choice == "cuda":
                raise
            say(f"device: cpu, because CUDA cannot be used: {error}")
    return CpuDevice(), CpuRasterizer(antialiased=antialiased, absgrad=absgrad)


def _open_cuda(antialiased: bool, absgrad: bool, say: Callable[[str], None]) -> tuple[Device, Rasterizer]:
    from clm.render.cuda_check import check_cuda

    check_cuda()  # before anything is compiled, or anything of CUDA is touched
    from clm.device.cuda import CudaDevice
    from clm.render.gsplat import GsplatRasterizer

    return CudaDevice(say=say), GsplatRasterizer(antialiased, absgrad, say=say)
