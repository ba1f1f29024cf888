"""One flat, frozen configuration: defaults < preset < file < flags. A field's `help` is the flag's help and the docs.

Fields left at None are computed by `resolve` from the others (the schedule of a short run, for instance); the resolved
configuration is written to the run and is what a resumed run is compared with.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clm.errors import ClmError

REFERENCE_ITERATIONS = 30_000  # the run length that the reference schedule (3DGS, gsplat) was tuned for


COUNTS = ("max_gaussians",)  # written as 18M or 950k as well


def parse_count(text: str, source: str) -> int:
    """`18M`, `1.5M`, `950k` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMbBgG]?)\s*", text)
    if not match:
        raise ClmError(f"`{text}` in {source} is not a count.", "Write a number such as 18M, 950k or 20000.")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()])


def _option(default: Any, help: str, *, flag: str | None = "", metavar: str | None = None) -> Any:
    """A field with its help; flag None: settable in a file or preset only; flag "": --the-field-name."""
    return field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar})


@dataclass(frozen=True)
class Config:
    # Run
    iterations: int = _option(30_000, "Training images to process, as in 3DGS.")
    batch_size: int = _option(4, "Views between two optimizer steps; learning rates follow the square-root rule.")
    seed: int = _option(0, "Seed of data order, initialisation and densification.")
    device: str = _option("auto", "auto, cpu or cuda.", metavar="auto|cpu|cuda")
    threads: int = _option(0, "CPU threads of the kernels; 0 takes every core. Never changes the result.")
    eval_every: int = _option(0, "Evaluate every N training images; 0: at the end only.")
    save_every: int = _option(0, "Checkpoint every N training images; 0: at the end only.")
    trace: str | None = _option(None, "Write a Chrome/Perfetto trace of the lanes.", metavar="FILE")
    # Placement
    offload: str = _option("auto", "Where Gaussians and optimizer state live.", metavar="auto|none|host")
    gpu_memory: str = _option("8GiB", "Device budget: arena and resident Gaussians (on the CPU, too).")
    host_memory: str = _option("auto", "Host budget for the store; auto: 80% of the memory that is free now.")
    moments: str = _option(
        "f32", "How Adam's moments are stored; bf16 takes a third off the bytes of a Gaussian.", metavar="f32|bf16"
    )
    colour_bus: str = _option(
        "f32",
        "How colours are loaded for training: f32 (default), or bf16, half the bytes; rounded wherever a Gaussian lives, "
        "while what is stored stays exact. Settable in a file only.",
        flag=None,
        metavar="f32|bf16",
    )
    max_gaussians: int | None = _option(None, "Never grow beyond this many Gaussians (18M, 950k).", metavar="N")
    image_cache: str = _option("4GiB", "Bytes of decoded photos kept in memory.", flag=None)
    # Scene
    images: str | None = _option(None, "Image folder, if it is not DATA/images.", metavar="DIR")
    masks: str | None = _option(None, "Folder of masks (NAME.png, black = ignore).", metavar="DIR")
    model: int | None = _option(None, "Which COLMAP model (sparse/N); default: the one with most images.")
    downscale: str = _option("auto", "Shrink photos by this factor.", metavar="auto|1|2|4|8")
    max_size: int = _option(1600, "Longer side of a training image in pixels, at most.")
    test_every: int = _option(8, "Hold out every Nth image (sorted by name) for testing; 0: none.")
    init_ply: str | None = _option(
        None, "Start from the Gaussians of a PLY instead of the COLMAP points.", metavar="PLY"
    )
    strict: bool = _option(False, "Fail on a corrupt image instead of skipping it.")
    # Model
    sh_degree: int = _option(3, "Highest spherical-harmonics degree, 0 to 3.")
    background: str = _option("black", "black, white, random, or r,g,b in 0..1.", metavar="COLOUR")
    antialias: bool = _option(False, "Antialiased (Mip-Splatting style) opacity compensation.", flag="--antialias")
    # Schedule: None is computed from `iterations`
    sh_interval: int | None = _option(None, "Training images per additional SH degree.", flag=None)
    strategy: str = _option("default", "Densification strategy.", metavar="default")
    densify_from: int | None = _option(None, "First densification (training images).", flag=None)
    densify_until: int | None = _option(None, "Last densification (training images); 0: never densify.", flag=None)
    densify_every: int | None = _option(None, "Training images between densifications.", flag=None)
    opacity_reset_every: int | None = _option(None, "Training images between opacity resets; 0: never.", flag=None)
    # Optimizer (batch 1 values of gsplat's simple_trainer)
    means_lr: float = _option(1.6e-4, "Learning rate of means, times the scene scale.", flag=None)
    means_lr_final: float = _option(0.01, "Fraction of means_lr reached at the end (exponential).", flag=None)
    quats_lr: float = _option(1e-3, "Learning rate of quaternions.", flag=None)
    log_scales_lr: float = _option(5e-3, "Learning rate of log-scales.", flag=None)
    logit_opacities_lr: float = _option(5e-2, "Learning rate of opacity logits.", flag=None)
    sh0_lr: float = _option(2.5e-3, "Learning rate of the SH constant.", flag=None)
    shN_lr: float = _option(1.25e-4, "Learning rate of the other SH coefficients.", flag=None)
    ssim_weight: float = _option(0.2, "Weight of 1 - SSIM in the loss; the rest is L1.", flag=None)
    # Densification thresholds
    init_opacity: float = _option(0.1, "Opacity of initial Gaussians.", flag=None)
    grow_screen_gradient: float = _option(
        2e-4, "Mean screen gradient (half image sizes) above which a row grows.", flag=None
    )
    absgrad: bool = _option(False, "Screen gradient from absolute per-pixel sums (AbsGS).", flag=None)
    split_scale: float = _option(0.01, "Rows above this size (times scene scale) are split, below cloned.", flag=None)
    prune_opacity: float = _option(0.005, "Rows more transparent than this are pruned.", flag=None)
    prune_scale: float = _option(0.1, "After the first reset, rows above this size (times scene scale) go.", flag=None)
    reset_opacity: float = _option(0.01, "Opacity ceiling at a reset.", flag=None)
    # Files
    keep_checkpoints: int = _option(2, "Older checkpoints are deleted once this many newer ones exist.", flag=None)


# The first field of each section above that has flags: the panels of `clm train --help`.
SECTIONS = {
    "iterations": "Run",
    "offload": "Placement",
    "images": "Scene",
    "sh_degree": "Model",
    "sh_interval": "Schedule",
}


def fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Config)


def field_type(name: str) -> type:
    """The type a value of this field has when it is not None."""
    hint = typing.get_type_hints(Config)[name]
    if isinstance(hint, types.UnionType):
        return next(t for t in hint.__args__ if t is not type(None))
    return hint


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    names = [f.name for f in fields()]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            fix = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(names)}."
            raise ClmError(f"Unknown key `{key}` in {source}.", fix)
    return {key: _coerced(key, value, source) for key, value in values.items()}


def _coerced(name: str, value: Any, source: str) -> Any:
    if value is None:
        return None
    want = field_type(name)
    if name in COUNTS and isinstance(value, str):
        return parse_count(value, source)
    if isinstance(value, bool) != (want is bool):
        raise ClmError(f"`{name}` in {source} must be a {want.__name__}, not {value!r}.")
    try:
        return want(value)
    except (TypeError, ValueError):
        raise ClmError(f"`{name}` in {source} must be a {want.__name__}, not {value!r}.") from None


def preset_folders() -> list[Path]:
    """Where presets are looked for: beside the package when installed, in the checkout otherwise."""
    here = Path(__file__).parent
    return [here / "configs", here.parent / "configs"]


def presets() -> dict[str, str]:
    """Name and purpose of every preset; the purpose is the comment on the first line of its file."""
    files = sorted((p for folder in preset_folders() for p in folder.glob("*.yaml")), key=lambda p: p.stem)
    return {p.stem: p.read_text().partition("\n")[0].lstrip("# ").rstrip() for p in files}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ClmError(
            f"Cannot read the configuration {path}: {reason}.", "It must be a YAML file of `key: value`."
        ) from None
    if not isinstance(values, dict):
        raise ClmError(f"The configuration {path} is not a list of `key: value` lines.")
    values.pop("data", None)  # a run's own config.yaml, which names its scene, is a configuration as well
    return _checked(values, str(path))


def _preset(name: str) -> dict[str, Any]:
    for folder in preset_folders():
        if (folder / f"{name}.yaml").exists():
            return _read_yaml(folder / f"{name}.yaml")
    raise ClmError(f"No preset `{name}`.", f"Known presets: {', '.join(presets())}.")


def load_config(flags: dict[str, Any], *, preset: str | None = None, file: Path | None = None) -> Config:
    """Merge defaults < preset < file < flags (None in `flags`: not given), check ranges, compute what was left open."""
    values: dict[str, Any] = {}
    if preset:
        values |= _preset(preset)
    if file:
        values |= _read_yaml(file)
    values |= _checked({k: v for k, v in flags.items() if v is not None}, "the command line")
    config = Config(**values)
    _check_ranges(config)
    return resolve(config)


def _check_ranges(config: Config) -> None:
    at_least = {
        "seed": 0,
        "iterations": 1,
        "batch_size": 1,
        "max_size": 16,
        "test_every": 0,
        "threads": 0,
        "max_gaussians": 1,
    }
    for name, low in at_least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ClmError(f"`{name}` is {value}, but must be at least {low}.")
    if not 0 <= config.sh_degree <= 3:
        raise ClmError(f"`sh_degree` is {config.sh_degree}, but must be 0, 1, 2 or 3.")
    choices = {"device": ("auto", "cpu", "cuda"), "offload": ("auto", "none", "host"), "strategy": ("default",)}
    choices["moments"] = choices["colour_bus"] = ("f32", "bf16")
    choices["downscale"] = ("auto", "1", "2", "4", "8")
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ClmError(f"`{name}` is `{getattr(config, name)}`, but must be one of: {', '.join(allowed)}.")
    parse_background(config.background)


def parse_background(text: str) -> tuple[float, float, float] | None:
    """RGB in 0..1, or None for `random` (a new colour for every training image)."""
    named = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "random": None}
    if text in named:
        return named[text]
    try:
        r, g, b = (float(part) for part in text.split(","))
    except ValueError:
        raise ClmError(
            f"`background` is `{text}`.", "Use black, white, random, or r,g,b with numbers in 0..1."
        ) from None
    return r, g, b


def resolve(config: Config) -> Config:
    """Fill the schedule fields that were left open: the reference schedule, shrunk in proportion for shorter runs."""
    ratio = min(1.0, config.iterations / REFERENCE_ITERATIONS)
    computed = {
        "sh_interval": max(1, round(1000 * ratio)),
        "densify_from": max(50, round(500 * ratio)),
        "densify_until": round(15_000 * ratio),
        "densify_every": 100,
        "opacity_reset_every": 3000 if ratio == 1.0 else 0,
    }
    return dataclasses.replace(config, **{k: v for k, v in computed.items() if getattr(config, k) is None})


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], source: str) -> Config:
    return Config(**_checked(values, source))
