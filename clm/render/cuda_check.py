"""What CUDA rendering needs of this machine, checked in the order in which a user would repair it.

gsplat is a wheel of sources that compiles its kernels on first use; where something is missing it prints a line and
renders nothing later. Here every lack is one sentence with its fix, before anything is compiled.
Every question to the machine is a function of this module, so that tests can answer it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from clm.errors import ClmError

GSPLAT_VERSION = "1.5.3"  # the tested one; its conventions are those of the CPU kernels


@dataclass(frozen=True)
class CudaFacts:
    """A machine that can render on CUDA."""

    device: str  # name of the device that torch uses
    device_bytes: int  # its memory in all
    torch_version: str
    torch_cuda: str  # CUDA version that torch was built for, such as 13.0
    nvcc: str | None  # path of the compiler; None where gsplat came compiled
    nvcc_cuda: str | None  # CUDA version of the compiler
    gsplat_version: str
    compiled: bool  # kernels are there; otherwise the first use takes one to three minutes


def check_cuda() -> CudaFacts:
    """The facts; ClmError for the first thing that is missing. Compiles nothing and imports no gsplat."""
    torch_version, torch_cuda = _torch_versions()
    if torch_cuda is None:
        raise ClmError(
            f"This torch ({torch_version}) is built for the CPU only.",
            "Install a CUDA build of torch (see pytorch.org), or pass --device cpu.",
        )
    found = _device()
    if found is None:
        raise ClmError(
            f"torch {torch_version} (CUDA {torch_cuda}) finds no CUDA device.",
            "Check that nvidia-smi lists one and CUDA_VISIBLE_DEVICES does not hide it, or pass --device cpu.",
        )
    version = _version("gsplat")  # of another release, `gsplat_ops.load_ops` looks whether it fits
    if version is None:
        raise ClmError("gsplat is not installed.", f"Run `pip install gsplat=={GSPLAT_VERSION}`, or pass --device cpu.")
    if _version("packaging") is None:
        raise ClmError("gsplat needs the package `packaging`, which is not installed.", "Run `pip install packaging`.")
    if _comes_compiled():
        return CudaFacts(*found, torch_version, torch_cuda, None, None, version, True)
    nvcc, nvcc_cuda = _check_compilers(torch_cuda)
    _check_ninja()
    return CudaFacts(*found, torch_version, torch_cuda, nvcc, nvcc_cuda, version, _is_cached())


def _check_compilers(torch_cuda: str) -> tuple[str, str]:
    """Path and CUDA version of an nvcc that can compile against this torch; ClmError otherwise."""
    nvcc, searched = _find_nvcc()
    major = torch_cuda.split(".")[0]
    toolkit = f"the CUDA {major} toolkit"
    if nvcc is None:
        raise ClmError(
            f"gsplat compiles its kernels on first use, but nvcc was not found (searched: {', '.join(searched)}).",
            f"Install {toolkit} and set CUDA_HOME to it, or pass --device cpu.",
        )
    nvcc_cuda = _nvcc_version(nvcc)
    if nvcc_cuda.split(".")[0] != major:
        raise ClmError(
            f"{nvcc} is of CUDA {nvcc_cuda or 'an unknown version'}, but this torch is built for CUDA {torch_cuda}.",
            f"Install {toolkit} and set CUDA_HOME to it, or install a torch built for the CUDA of nvcc.",
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise ClmError(
            f"gsplat compiles its kernels on first use, but the C++ compiler `{compiler}` was not found.",
            "Install g++ or set CXX, or pass --device cpu.",
        )
    return nvcc, nvcc_cuda


def _check_ninja() -> None:
    """ClmError without ninja: torch runs it on every start, also where the kernels were compiled before."""
    if ninja_folder() is None:
        raise ClmError(
            "torch loads gsplat's kernels through ninja, which was not found "
            f"(searched: PATH, {Path(sys.executable).parent}).",
            "Run `pip install ninja`, or pass --device cpu.",
        )


def ninja_folder() -> str | None:
    """The folder that PATH lacks to find ninja: empty where it is found, that of the interpreter, or None."""
    beside = str(Path(sys.executable).parent)  # not resolved: a virtual environment's own folder
    if shutil.which("ninja"):
        return ""
    return beside if shutil.which("ninja", path=beside) else None


def _torch_versions() -> tuple[str, str | None]:
    """(version of torch, CUDA version it was built for or None)."""
    import torch

    return torch.__version__, torch.version.cuda


def _device() -> tuple[str, int] | None:
    """(name, bytes) of the current CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.name, properties.total_memory


def _version(package: str) -> str | None:
    """Installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _comes_compiled() -> bool:
    """Whether gsplat was installed with its kernels (a platform wheel), so that nothing is compiled here."""
    spec = importlib.util.find_spec("gsplat")  # finds the folder, runs nothing
    folders = (spec.submodule_search_locations or []) if spec else []
    return any(path.suffix in (".so", ".pyd") for folder in folders for path in Path(folder).glob("csrc*"))


def _is_cached() -> bool:
    """Whether the kernels were compiled before, where torch keeps its extensions."""
    from torch.utils.cpp_extension import _get_build_directory

    return (Path(_get_build_directory("gsplat_cuda", verbose=False)) / "gsplat_cuda.so").exists()


def _find_nvcc() -> tuple[str | None, list[str]]:
    """(path of nvcc or None, places searched), in torch's own order: CUDA_HOME or CUDA_PATH, PATH, /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:  # torch looks nowhere else then
        path = Path(home) / "bin" / "nvcc"
        return (str(path) if path.is_file() else None), [str(path)]
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path, ["PATH"]
    path = Path("/usr/local/cuda/bin/nvcc")
    return (str(path) if path.is_file() else None), ["CUDA_HOME", "PATH", str(path)]


def _nvcc_version(nvcc: str) -> str:
    """CUDA version that `nvcc --version` states, such as 13.0; empty if it cannot be run or read."""
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    match = re.search(r"release (\d+\.\d+)", text)
    return match.group(1) if match else ""
