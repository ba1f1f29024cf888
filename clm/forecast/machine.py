"""What the simulator knows about a machine: sizes, rates, and how long rendering a view takes. Plain numbers in a YAML file.

`configs/machines/*.yaml` describe machines that are not here; every value carries a comment that names the assumption
and its source, and the comments are read along, so that a prediction can print what it rests on. The rates of this
machine are measured (`clm.forecast.measure`). GB/s are 10^9 bytes per second of the bytes that the functions below count.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clm.errors import ClmError
from clm.plan.budget import (
    COLOUR_BUS_BYTES,
    CULL_BYTES,
    GRADIENT_BYTES,
    MOMENT_BYTES,
    PARAMETER_BYTES,
    STAMP_BYTES,
    STATISTICS_BYTES,
)
from clm.units import parse_bytes

DEVICES = ("cpu", "gpu")
_SIZES = ("device_memory", "host_memory", "disk")
_COLOUR_COLUMNS = 48


def row_bytes(columns: int, colour_bus: str = "f32") -> int:
    """Parameters of a row with `columns` active colour columns (3, 12, 27 or 48), by how colours cross the bus (a key of
    COLOUR_BUS_BYTES): what a load moves."""
    return PARAMETER_BYTES - 4 * _COLOUR_COLUMNS + COLOUR_BUS_BYTES[colour_bus] * columns


def gradient_bytes(columns: int) -> int:
    """A gradient row with `columns` active colour columns: what a send back moves."""
    return GRADIENT_BYTES - 4 * (_COLOUR_COLUMNS - columns)


def moment_bytes(columns: int, moments: str) -> int:
    """Both Adam moments of a row with `columns` active colour columns; moments are laid out as the parameters."""
    return MOMENT_BYTES[moments] * row_bytes(columns) // PARAMETER_BYTES


def fetch_bytes(columns: int, moments: str = "f32") -> int:
    """Bytes that catching up and gathering a row touches: parameters, moments and stamp read, parameters written."""
    return 2 * row_bytes(columns) + moment_bytes(columns, moments) + STAMP_BYTES


def adam_bytes(columns: int, moments: str = "f32") -> int:
    """Bytes that Adam touches: all state of the row read and written, its gradient read, its cull entry written."""
    state = row_bytes(columns) + moment_bytes(columns, moments) + STAMP_BYTES + STATISTICS_BYTES
    return 2 * state + gradient_bytes(columns) + CULL_BYTES


@dataclass(frozen=True)
class Machine:
    """A machine as the simulator sees it. On a `cpu` device compute, load, send back, update and plan share the cores,
    and the bus is a copy in host memory; on a `gpu` device only load, update and plan use the host."""

    name: str
    device: str  # "cpu" or "gpu"
    device_memory: int  # bytes
    host_memory: int  # bytes
    disk: int  # bytes free for checkpoints, results and the scratch file
    cores: float
    host_gather_gb_s: float  # fetch on the host: fetch_bytes per row
    host_adam_gb_s: float  # Adam on the host: adam_bytes per row
    bus_in_gb_s: float  # host to device: row_bytes per row
    bus_out_gb_s: float  # device to host: gradient_bytes per row
    device_gb_s: float  # read plus written in device memory
    plan_ns_per_row: float  # cull, order and plan on one thread, per row and view of the batch
    hand_over_us: float  # fixed cost of one piece of work of a lane: hand-over between threads, calls, launches
    render_ms_per_view: float  # render, loss and backward of a view: fixed part,
    render_ns_per_row: float  # per row of its visible set,
    render_ns_per_pixel: float  # per pixel
    disk_read_gb_s: float = 0.0  # pages of the scratch file, several requests at a time; 0: not known
    disk_write_gb_s: float = 0.0  # over pages that were written before, beside reads
    disk_core_gb_s: float = (
        0.0  # pages packed or unpacked, checked and handed to the system by one core; 0: costs nothing
    )
    compute_cores: float = 0.0  # cores that render, loss and backward keep busy; 0 on a gpu
    ranks_per_host: float = 1.0  # devices of one host, each with a rank of its own; cores and memory are all of them's
    link_gb_s: float = 0.0  # between two devices of one host, each way; 0: not known
    network_gb_s: float = 0.0  # between two hosts, each way, for all ranks of a host together; 0: not known
    network_us: float = 0.0  # fixed cost of one exchange between ranks
    notes: tuple[tuple[str, str], ...] = ()  # (key, where its value comes from)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ClmError(f"The device of machine {self.name} is {self.device!r}.", f"Use {' or '.join(DEVICES)}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (value > 0 or (value == 0 and field.name in _MAY_BE_ZERO)):
                raise ClmError(f"`{field.name}` of machine {self.name} is {value}, but must be positive.")

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def turn_seconds(self, rows: float, passes: int, pixels: float | None) -> float:
        """Computing a turn with the device to itself: its rows to splats or back (passes 1), or both (2), and, where it has
        pixels, render, loss and backward of its view. Either pass counts as half of what rows cost."""
        by_rows = 1e-9 * self.render_ns_per_row * rows * passes / 2
        return (
            by_rows
            if pixels is None
            else by_rows + 1e-3 * self.render_ms_per_view + 1e-9 * self.render_ns_per_pixel * pixels
        )


_MAY_BE_ZERO = (
    *("disk", "disk_read_gb_s", "disk_write_gb_s", "disk_core_gb_s", "link_gb_s", "network_gb_s", "network_us"),
    *("hand_over_us", "render_ms_per_view", "render_ns_per_row", "compute_cores", "plan_ns_per_row"),
)


def machine_folders() -> list[Path]:
    """Where machine files are looked for: beside the package when installed, in the checkout otherwise."""
    package = Path(__file__).parents[1]
    return [package / "configs" / "machines", package.parent / "configs" / "machines"]


def load_machine(name: str) -> Machine:
    """The machine of a YAML file: a path, or the name of one in configs/machines. ClmError for anything that is not."""
    import yaml

    path = _find(name)
    try:
        text = path.read_text()
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClmError(f"Cannot read the machine {path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise ClmError(f"The machine {path} is not a list of `key: value` lines.")
    return Machine(**_checked(values, str(path)), notes=_notes(text))


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml")
    for folder in machine_folders():
        if (folder / f"{stem}.yaml").is_file():
            return folder / f"{stem}.yaml"
    known = sorted({p.stem for folder in machine_folders() for p in folder.glob("*.yaml")})
    raise ClmError(f"No machine file {name}.", f"Pass a YAML file, `this`, or one of {', '.join(known)}.")


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(Machine) if f.name != "notes"}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            fix = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(fields)}."
            raise ClmError(f"Unknown key `{key}` in {source}.", fix)
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ClmError(f"{source} does not say `{missing[0]}`.", "A machine needs every rate and size.")
    return {key: _value(key, value, source) for key, value in values.items()}


def _value(key: str, value: Any, source: str) -> Any:
    if key in ("name", "device"):
        return str(value)
    if key in _SIZES:
        return parse_bytes(str(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClmError(f"`{key}` in {source} must be a number, not {value!r}.")
    return float(value)


def _notes(text: str) -> tuple[tuple[str, str], ...]:
    """The comment behind each `key: value  # comment` line, in the file's order."""
    found = (re.match(r"(\w+):[^#]*#\s*(.*\S)", line) for line in text.splitlines())
    return tuple((match[1], match[2]) for match in found if match)
