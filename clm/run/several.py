"""What is different where several ranks train one model: what they have, and how one of them ends by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from clm.errors import ClmError
from clm.ranks import Ranks
from clm.units import format_bytes


def of_all_ranks(error: ClmError) -> ClmError:
    """`error`, which is raised on every rank: nobody ends because of another one."""
    error.of_all_ranks = True  # type: ignore[attr-defined]
    return error


@contextmanager
def unjoined(ranks: Ranks, parts: ExitStack) -> Iterator[None]:
    """An error that this rank alone has leaves at once. Its lanes may be in calls that wait for ranks that wait for this one, so
    nothing is closed: the process ends."""
    try:
        yield
    except BaseException as error:
        if not ranks.alone and not getattr(error, "of_all_ranks", False):
            parts.pop_all()
        raise


def in_words(ranks: Ranks, rows: int, budgets: tuple[int, int]) -> list[str]:
    """What the ranks have, in one line; of one rank nothing. rows: this rank's own; budgets: its bytes of device and host."""
    if ranks.alone:
        return []
    each = ranks.gather((rows, *budgets))
    shares, device, host = zip(*each, strict=True)
    return [
        f"{ranks.world} ranks share {sum(shares):,} Gaussians, {min(shares):,} to {max(shares):,} each. Budgets are per rank: "
        f"device {_range(device)}, host {_range(host)}; together {format_bytes(sum(device))} and {format_bytes(sum(host))}"
    ]


def _range(sizes: Sequence[int]) -> str:
    low, high = format_bytes(min(sizes)), format_bytes(max(sizes))
    return low if low == high else f"{low} to {high}"
