"""gsplat's functions, loaded: the right ninja found, nothing printed to stdout, an unknown release looked at first.

Called are gsplat's public functions below `gsplat.rasterization`: that one cannot take a background for packed rows
(in 1.5.3 and after), copies coefficients of drawn rows and adds their gradients by a sort.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clm.errors import ClmError
from clm.render.cuda_check import GSPLAT_VERSION, check_cuda, ninja_folder

# What is passed by name; in this order they also stand in `Ops`.
PARAMETERS = {
    "fully_fused_projection": {
        *(
            "eps2d",
            "near_plane",
            "far_plane",
            "radius_clip",
            "packed",
            "sparse_grad",
            "calc_compensations",
            "opacities",
        ),
    },
    "spherical_harmonics": {"degrees_to_use", "dirs", "coeffs"},
    "isect_tiles": {"tile_size", "tile_width", "tile_height", "packed"},
    "isect_offset_encode": {"n_images", "tile_width", "tile_height"},
    "rasterize_to_pixels": {"tile_size", "isect_offsets", "flatten_ids", "backgrounds", "packed", "absgrad"},
}


class Ops(NamedTuple):
    """The functions of gsplat that are used."""

    fully_fused_projection: Callable[..., tuple[Any, ...]]
    spherical_harmonics: Callable[..., Tensor]
    isect_tiles: Callable[..., tuple[Tensor, Tensor, Tensor]]
    isect_offset_encode: Callable[..., Tensor]
    rasterize_to_pixels: Callable[..., tuple[Tensor, Tensor]]


def alpha_limit(version: str) -> float:
    """Largest alpha of one Gaussian at a pixel in that release of gsplat: 0.999 (as in our CPU kernels) before 1.6."""
    release = tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:2])
    return 0.999 if release < (1, 6) else 0.99


def load_ops(say: Callable[[str], None]) -> Ops:
    """Import gsplat, compiling its kernels the first time; ClmError where it cannot work here.

    `say` hears in advance that and how long a compilation takes, and of a release that was never tested.
    """
    facts = check_cuda()
    if not facts.compiled:
        say(
            f"Compiling gsplat's CUDA kernels with {facts.nvcc} for the first time: one to three minutes. "
            "Later runs use the compiled ones."
        )
    _put_ninja_on_path()
    fix = "Run `VERBOSE=1 python -c 'import gsplat.cuda._backend'` to see the compiler's words, or pass --device cpu."
    try:
        with _stdout_to_stderr():
            gsplat = importlib.import_module("gsplat")
            kernels = importlib.import_module("gsplat.cuda._backend")._C  # compiles here, not in the first view
    except Exception as error:  # a compiler may fail with anything; the user needs one sentence
        raise ClmError(f"gsplat's CUDA kernels do not compile or load: {_first_line(error)}", fix) from error
    if kernels is None:
        raise ClmError("gsplat was imported, but without its CUDA kernels.", fix)
    version = facts.gsplat_version.split("+")[0]  # compiled wheels add +pt.. and +cu..
    ops = Ops(*(_function(gsplat, name, version) for name in PARAMETERS))
    if version != GSPLAT_VERSION:
        limit = alpha_limit(version)
        other = "" if limit == 0.999 else f"; its largest alpha is {limit}, that of the CPU backend 0.999"
        say(f"gsplat {version} was never tested here, {GSPLAT_VERSION} was{other}.")
    # gsplat makes sparse gradients of ids that it wrote itself; unsaid, torch warns that it does not check them.
    torch.sparse.check_sparse_tensor_invariants.disable()
    return ops


def _function(gsplat: Any, name: str, version: str) -> Callable[..., Any]:
    """The function of that name; ClmError where it lacks a parameter that is passed to it."""
    function = getattr(gsplat, name, None)
    missing = PARAMETERS[name] - set(inspect.signature(function).parameters) if function else {"the function itself"}
    if function is None or missing:
        raise ClmError(
            f"gsplat {version} is installed, whose `{name}` is another one (missing: {', '.join(sorted(missing))}).",
            f"Run `pip install gsplat=={GSPLAT_VERSION}`, or pass --device cpu.",
        )
    return function


def _put_ninja_on_path() -> None:
    """torch's extension loader runs `ninja` from PATH on every start, and pip's lies beside an interpreter whose folder
    need not be on PATH (`.venv/bin/clm` without activation)."""
    folder = ninja_folder()
    if folder:
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH", ""), folder]))


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What is printed inside, by child processes too, goes to stderr: stdout belongs to --json."""
    if sys.stdout:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of the two is closed: there is nothing to keep clean, or nowhere to go
        kept = -1
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
