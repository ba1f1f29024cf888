"""One flat, frozen configuration; `clm.settings` merges it. A field's `help` is the flag's help and the docs.

Fields left at None are computed by `resolve` from the others (the schedule of a short run, for instance); the resolved
configuration is written to the run and is what a resumed run is compared with.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from typing import Any

from clm.calendar import schedule_of
from clm.errors import ClmError
from clm.option import option, rate
from clm.units import shown
from clm.values import LARGEST_COUNT, checked_value, parse_background

__all__ = ["Config", "field_type", "fields", "from_dict", "parse_background", "resolve", "to_dict"]

RETIRED = ("split_scale",)  # keys that older runs have


_IMAGES = 10_000_000  # the most that a run's tables of steps are made for
_MANY = 1_000_000_000


@dataclass(frozen=True)
class Config:
    # Run
    iterations: int = option(
        30_000, "Training images to process, as in 3DGS.", lo=1, hi=_IMAGES, planned=True, section="Run"
    )
    batch_size: int = option(
        4, "Views between two optimizer steps; learning rates follow the square-root rule.", lo=1, hi=1024, planned=True
    )
    growing_batch_size: int = option(
        0, "Views between two steps until growth ends, if fewer; 0: --batch-size throughout.", flag=False, lo=0, hi=1024
    )
    seed: int = option(0, "Seed of data order, initialisation and densification.", lo=0, hi=2**63 - 1, planned=True)
    device: str = option("auto", "auto, cpu or cuda.", choices=("auto", "cpu", "cuda"), resume="free")
    threads: int = option(
        0,
        "CPU threads of the kernels; 0 takes every core. Never changes the result.",
        lo=0,
        hi=1024,
        suggest=0,
        resume="free",
    )
    eval_every: int = option(0, "Evaluate every N training images; 0: at the end only.", lo=0, hi=_MANY, resume="free")
    save_every: int | None = option(
        None,
        "Checkpoint every N training images; 0: at the end only; default: every 10 minutes.",
        lo=0,
        hi=_MANY,
        resume="free",
    )
    trace: str | None = option(None, "Write a Chrome/Perfetto trace of the lanes.", metavar="FILE", resume="own")
    rank_timeout: float = option(
        600.0,
        "Several ranks (torchrun): seconds that one waits for the others before all end.",
        lo=1.0,
        hi=_MANY,
        metavar="S",
        resume="own",
    )
    # Placement
    offload: str = option(
        "auto",
        "Where Gaussians and optimizer state live: on the device, in host memory, on disk; auto: the first that has room.",
        choices=("auto", "none", "host", "disk"),
        resume="free",
        planned=True,
        section="Placement",
    )
    scratch: str | None = option(
        None,
        "Folder for the rows that host memory does not hold: on a fast local disk; default: RUN/scratch.",
        metavar="DIR",
        resume="free",
        planned=True,
    )
    gpu_memory: str = option(
        "auto",
        "Device budget: arena and resident Gaussians; auto: what is free there (on the CPU: what --host-memory leaves).",
        kind="size",
        choices=("auto",),
        metavar="SIZE",
        resume="free",
        planned=True,
    )
    host_memory: str = option(
        "auto",
        "Host budget for the store; auto: 80% of the memory that is free now.",
        kind="size",
        choices=("auto",),
        metavar="auto|SIZE",
        resume="free",
        planned=True,
    )
    moments: str = option(
        "f32",
        "How Adam's moments are stored; bf16 takes a third off the bytes of a Gaussian.",
        choices=("f32", "bf16"),
        resume="fixed",
        planned=True,
    )
    colour_bus: str = option(
        "f32",
        "How colours are loaded for training: f32 (default), or bf16, half the bytes; rounded wherever a Gaussian lives, "
        "while what is stored stays exact. Settable in a file only.",
        flag=False,
        choices=("f32", "bf16"),
    )
    max_gaussians: int | None = option(
        None,
        "Never grow beyond this many Gaussians (18M, 950k); with --strategy mcmc the size of the model, 1M if not given.",
        metavar="N",
        kind="count",
        lo=1,
        hi=LARGEST_COUNT,
        suggest="1M",
        planned=True,
    )
    image_cache: str = option("4GiB", "Bytes of decoded photos kept in memory.", flag=False, kind="size", resume="free")
    # Scene
    images: str | None = option(None, "Image folder, if it is not DATA/images.", metavar="DIR", section="Scene")
    masks: str | None = option(
        None, "Folder of masks (NAME.png, black: left out), instead of the photos' alpha channels.", metavar="DIR"
    )
    mask_mode: str = option(
        "ignore",
        "Pixels that a mask or an alpha channel leaves out: ignore them, or learn that nothing is there (transparent).",
        choices=("ignore", "transparent"),
    )
    model: int | None = option(
        None, "Which COLMAP model (sparse/N); default: the one with most images.", lo=0, hi=9999, planned=True
    )
    downscale: str = option("auto", "Shrink photos by this factor.", choices=("auto", "1", "2", "4", "8"), planned=True)
    max_size: int = option(1600, "Longer side of a training image in pixels, at most.", lo=16, hi=65536, planned=True)
    test_every: int = option(
        8,
        "Hold out every Nth image (sorted by name) for testing; 0: none.",
        lo=0,
        hi=_MANY,
        resume="begun",
        planned=True,
    )
    test_list: str | None = option(
        None,
        "Hold out the images that this file names instead: names or stems, one a line.",
        metavar="FILE",
        resume="begun",
        planned=True,
    )
    near: float | None = option(
        None, "Nothing nearer is drawn; default: a hundredth of the scene's unit.", metavar="X", lo=1e-18, hi=1e18
    )
    far: float | None = option(
        None, "Nothing farther away is drawn; default: 1e12 times near.", metavar="X", lo=1e-18, hi=1e30
    )
    init_ply: str | None = option(
        None,
        "Start from the Gaussians of a model (any format) instead of the COLMAP points.",
        metavar="FILE",
        resume="begun",
    )
    strict: bool = option(False, "Fail on a corrupt image instead of skipping it.")
    # Model
    sh_degree: int = option(
        3, "Highest spherical-harmonics degree, 0 to 3.", lo=0, hi=3, resume="fixed", planned=True, section="Model"
    )
    background: str = option(
        None,
        "black, white, random, or r,g,b in 0..1; default: black, or random with --mask-mode transparent.",
        metavar="COLOUR",
        kind="colour",
    )
    antialias: bool = option(False, "Antialiased (Mip-Splatting style) opacity compensation.")
    exposure: str = option(
        "off",
        "Learn how each photo was exposed, so that the model has one exposure; auto: where the photos' exposures differ.",
        choices=("auto", "on", "off"),
    )
    # Schedule: what is None is computed from `iterations`, by `resolve`
    sh_interval: int = option(
        None, "Training images per additional SH degree.", flag=False, lo=1, hi=_MANY, section="Schedule"
    )
    strategy: str = option(
        "default",
        "How the number of Gaussians changes: default (split, prune); mcmc: towards --max-gaussians, then constant.",
        choices=("default", "mcmc"),
        planned=True,
    )
    densify_from: int = option(None, "First densification (training images).", flag=False, lo=0, hi=_MANY)
    densify_until: int = option(
        None, "Last densification (training images); 0: never densify.", flag=False, lo=0, hi=_MANY
    )
    densify_every: int = option(None, "Training images between densifications.", flag=False, lo=1, hi=_MANY)
    opacity_reset_every: int = option(
        0, "Training images between opacity resets (3DGS: 3000); 0: never.", flag=False, lo=0, hi=_MANY
    )
    # Optimizer (batch 1 values of gsplat's simple_trainer)
    means_lr: float = rate(1.6e-4, "Learning rate of means, times the scene scale.")
    means_lr_final: float = option(
        0.01, "Fraction of means_lr reached at the end (exponential).", flag=False, lo=1e-6, hi=1.0
    )
    anneal: float = option(
        None,
        "Rates other than that of means begin so many times as high, and end so many times as low (exponential); 1: constant.",
        flag=False,
        lo=1.0,
        hi=100.0,
    )
    quats_lr: float = rate(1e-3, "Learning rate of quaternions.")
    log_scales_lr: float = rate(5e-3, "Learning rate of log-scales.")
    logit_opacities_lr: float = rate(5e-2, "Learning rate of opacity logits.")
    sh0_lr: float = rate(2.5e-3, "Learning rate of the SH constant.")
    shN_lr: float = rate(1.25e-4, "Learning rate of the other SH coefficients.")
    ssim_weight: float = option(0.2, "Weight of 1 - SSIM in the loss; the rest is L1.", flag=False, lo=0.0, hi=1.0)
    # Densification thresholds
    init_opacity: float = option(0.1, "Opacity of initial Gaussians.", flag=False, lo=1e-4, hi=0.9999)
    grow_screen_gradient: float = option(
        2e-4, "Mean screen gradient (half image sizes) above which a row grows.", flag=False, lo=0.0, hi=1e9
    )
    grow_evidence: float = option(
        450.0,
        "A row grows only if pairs of views share so many pixels of it: n (n - 1) v for n views with v pixels each.",
        flag=False,
        lo=0.0,
        hi=1e12,
    )
    prune_views: float = option(
        1.5, "After growth, rows go that no view sees, or fewer than this and no photo their centre; 0: none go.", flag=False,
        lo=0.0, hi=1e9,
    )  # fmt: skip
    absgrad: bool = option(False, "Screen gradient from absolute per-pixel sums (AbsGS).", flag=False)
    prune_opacity: float = option(0.005, "Rows more transparent than this are pruned.", flag=False, lo=0.0, hi=1.0)
    prune_scale: float = option(
        0.1, "After the first opacity reset, rows above this size (times scene scale) go.", flag=False, lo=0.0, hi=1e9
    )
    noise_lr: float = option(
        5e5,
        "mcmc: noise on means, times their learning rate and covariance over scene scale squared.",
        flag=False,
        lo=0.0,
        hi=1e9,
    )
    opacity_reg: float = option(0.01, "mcmc: weight of the mean opacity in the loss.", flag=False, lo=0.0, hi=10.0)
    scale_reg: float = option(0.01, "mcmc: weight of the mean scale in the loss.", flag=False, lo=0.0, hi=10.0)
    reset_opacity: float = option(0.01, "Opacity ceiling at a reset.", flag=False, lo=1e-4, hi=0.9999)
    # Files
    keep_checkpoints: int = option(
        2, "Older checkpoints are deleted once this many newer ones exist.", flag=False, lo=1, hi=_MANY, resume="free"
    )

    def batch_size_at(self, image: int) -> int:
        """Views of the batch that begins at a training image: many small steps while rows come and go, if that is asked for."""
        growing = self.growing_batch_size > 0 and image < self.densify_until
        return min(self.batch_size, self.growing_batch_size) if growing else self.batch_size


def fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Config)


_HINTS = typing.get_type_hints(Config)


def field_type(name: str) -> type:
    """The type a value of this field has when it is not None."""
    hint = _HINTS[name]
    if isinstance(hint, types.UnionType):
        return next(t for t in hint.__args__ if t is not type(None))
    return hint


def checked(values: dict[Any, Any], source: str) -> dict[str, Any]:
    """Values by known names, each of its field's type and within its bounds; ClmError for the first that is not."""
    known = {f.name: f for f in fields()}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}."
            raise ClmError(f"Unknown key `{shown(key)}` in {source}.", fix)
    return {key: _of_field(known[key], value, source) for key, value in values.items()}


def _of_field(f: dataclasses.Field[Any], value: Any, source: str) -> Any:
    if value is not None:
        return checked_value(f.name, field_type(f.name), f.metadata, value, source)
    if f.default is None:
        return None
    raise ClmError(f"`{f.name}` in {source} has no value.", f"Leave the line out for the default, {f.default}.")


def resolve(config: Config) -> Config:
    """Fill the fields that were left open."""
    computed = schedule_of(config.iterations, config.strategy)
    computed["background"] = "random" if config.mask_mode == "transparent" else "black"
    return dataclasses.replace(config, **{k: v for k, v in computed.items() if getattr(config, k) is None})


def still_background(config: Config) -> tuple[float, float, float]:
    """Of pictures that are not trained on: black where training images have random ones."""
    return parse_background(config.background or "black") or (0.0, 0.0, 0.0)


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], source: str) -> Config:
    """The configuration that a run wrote. What is not in it is what older runs did, and what is not known any more is gone."""
    kept = {key: value for key, value in values.items() if key not in RETIRED}
    return Config(**checked({"anneal": 1.0, "prune_views": 0.0, **kept}, source))
