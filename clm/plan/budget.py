"""What everything costs in bytes: the only place that knows bytes per row. A test compares them with the real arrays."""

from __future__ import annotations

import math

from clm.store.layout import CHUNK_ROWS, PAGE_ROWS
from clm.store.page_file import slot_bytes
from clm.store.paged import MOST_PLACES

PARAMETER_BYTES = 240  # geometry 12 floats (one is identity), colour 48 floats
MOMENT_BYTES = {"f32": 480, "bf16": 240}  # both Adam moments, laid out as the parameters
COLOUR_BUS_BYTES = {"f32": 4, "bf16": 2}  # one colour value of a row on its way to the device
STAMP_BYTES = 4  # int32 step of the last update
KEY_BYTES = 8  # identity
CULL_BYTES = 16  # centre and bounding radius
STATISTICS_BYTES = 16  # densification: count of views, screen gradient, pixels and their squares
GRADIENT_BYTES = 256  # geometry gradient 16 floats (four are statistics, one padding), colour gradient 48 floats
SLOT_BYTES = PARAMETER_BYTES + GRADIENT_BYTES

TURNS_UNDER_WAY = 4  # of one batch: routed, and not over
DEVICE_ROWS = 1 << 15  # resident rows that one call of Adam or catching up takes at once
DEVICE_ROW_WORK = 1792  # bytes of temporaries for each of them, at most
TRAVELLING_BYTES = 192  # of a row of a view whose splats travel: record, radii, order, what goes and what comes back

WRITING_BYTES = (
    CHUNK_ROWS * 2 * PARAMETER_BYTES
)  # of the host: rows on their way into a PLY, as rows and as in the file
DECIDE_ROW_BYTES, CHILD_BYTES = (
    8,
    24,
)  # of the host, for a moment: a rebuild's candidates, of every row; a row that comes
GROWTH_ROW_BYTES = DECIDE_ROW_BYTES + CHILD_BYTES  # of a row of which each gets a child
PAGE_TABLE_BYTES = 96  # of a page under the disk tier: bounds 32; fill three times; flags; frame, slot, checksum, uses
GROWN_FILL = 0.8  # of a page, that rows fill once a scene has grown: 0.87 was measured after 100 rebuilds
MOST_GROWN_ROWS = int(GROWN_FILL * MOST_PLACES)  # ids count free places, too
SCRATCH_SPARE, SCRATCH_SPARE_SHARE = 1 << 30, 0.05  # left free of a disk: the smaller of the two

OFFLOADS = ("auto", "none", "host", "disk")
AUTO = "auto"  # --gpu-memory, --host-memory: what is free


def store_row_bytes(moments: str) -> int:
    """Bytes of one row in the store, by how its moments are stored (a key of MOMENT_BYTES)."""
    return PARAMETER_BYTES + MOMENT_BYTES[moments] + STAMP_BYTES + KEY_BYTES + CULL_BYTES + STATISTICS_BYTES


def resident_row_bytes(moments: str, shared_memory: bool = True) -> int:
    """Device bytes of a row that lives there: parameters, moments, stamp, densification statistics. Its cull entry and
    its key never leave the host; a device with memory of its own keeps moments in f32."""
    return store_row_bytes(moments if shared_memory else "f32") - CULL_BYTES - KEY_BYTES


def page_row_bytes(moments: str) -> int:
    """Bytes of one row in a page of the disk tier: all of it but its cull entry, which stays in host memory."""
    return store_row_bytes(moments) - CULL_BYTES


def frame_bytes(page_rows: int = PAGE_ROWS, moments: str = "f32") -> int:
    """Bytes of host memory that hold one page of the disk tier."""
    return page_rows * page_row_bytes(moments)


def page_file_bytes(page_rows: int = PAGE_ROWS, moments: str = "f32") -> int:
    """Bytes of a page's slot in the scratch file: its rows array by array, in whole sectors."""
    return slot_bytes(page_rows, page_row_bytes(moments))


def scratch_bytes(pages: int, moments: str = "f32", page_rows: int = PAGE_ROWS) -> int:
    """Bytes of the scratch file of so many pages."""
    return pages * page_file_bytes(page_rows, moments)


def paged_bytes(rows: int, pages: int) -> int:
    """Bytes of host memory for rows whose pages are on disk, besides the frames: cull entries, and tables of the pages."""
    return rows * CULL_BYTES + pages * PAGE_TABLE_BYTES


def growth_bytes(rows: int, most: int | None) -> int:
    """Bytes of the host that a rebuild of so many rows takes for a moment. most: how many they may become (None: any number)."""
    come = rows if most is None else min(rows, max(0, most - rows))
    return rows * DECIDE_ROW_BYTES + come * CHILD_BYTES


def grown_pages(rows: int, page_rows: int = PAGE_ROWS) -> int:
    """Pages of a scene that grew to so many rows; no more than there are ids for, as long as the rows fit into those."""
    return max(min(math.ceil(rows / (GROWN_FILL * page_rows)), MOST_PLACES // page_rows), -(-rows // page_rows))


def scratch_room(free: int) -> int:
    """Bytes of a disk with so many free that the scratch file may take."""
    return max(0, free - min(SCRATCH_SPARE, int(SCRATCH_SPARE_SHARE * free)))


def scratch_free(room: int) -> int:
    """Bytes that must be free for a scratch file of so many: `scratch_room(scratch_free(n)) >= n`."""
    return min(room + SCRATCH_SPARE, math.ceil(room / (1.0 - SCRATCH_SPARE_SHARE)) + 1)


STORE_ROW_BYTES = store_row_bytes("f32")
RESIDENT_ROW_BYTES = resident_row_bytes("f32")


def store_bytes(rows: int, row_bytes: int = STORE_ROW_BYTES) -> int:
    """Parameters, moments, stamps, keys, cull entries, densification statistics of all rows. Block bounds: 32 B per block."""
    return rows * row_bytes


def arena_bytes(slots: int) -> int:
    """Parameters and gradient rows of all arena slots."""
    return slots * SLOT_BYTES


def slots_for(available: int) -> int:
    """Arena slots that fit into so many bytes."""
    return max(0, available // SLOT_BYTES)


def in_core_bytes(rows: int, arena_slots: int, row_bytes: int = RESIDENT_ROW_BYTES) -> int:
    """What all-on-device needs there: every row resident (`resident_row_bytes`), and the arena."""
    return rows * row_bytes + arena_bytes(arena_slots)


def staging_depth(largest: int, parcel_rows: int = CHUNK_ROWS) -> int:
    """Staging buffers per direction between memories, where a turn moves at most `largest` rows: one is filled while the
    other is under way; where a turn takes several parcels, gathering, copying and Adam each have one."""
    return 2 if largest <= parcel_rows else 3


def staging_bytes(largest_view: int, shared_memory: bool = False) -> int:
    """Bytes of staging, at most: rows that come, gradients that go, new cull entries, one buffer of partial gradients on
    their way back. Each holds a quarter more than is needed, or one parcel. On the host, and where the device has memory of
    its own, there once more."""
    rows, depth = min(largest_view * 5 // 4, CHUNK_ROWS), 1 if shared_memory else staging_depth(largest_view)
    return rows * (depth * (PARAMETER_BYTES + GRADIENT_BYTES + CULL_BYTES) + GRADIENT_BYTES)


def lanes_bytes(largest_view: int) -> int:
    """Bytes that the lanes take on a device with memory of its own, beside arena and residents: staging; lists of slots and
    positions, int64, of the turns under way (per row of a view one list each, and two each for loads and for sends); what
    Adam and catching up need for the rows that they take at once, on two streams."""
    lists = largest_view * 8 * (TURNS_UNDER_WAY + 2 + 2)
    return staging_bytes(largest_view) + lists + 2 * device_work_bytes(largest_view)


def device_work_bytes(rows: int) -> int:
    """Bytes of the workspace of Adam, or of catching up, for resident rows (`clm.device.workspace`), which takes so many at
    once; each of its 40 or so temporaries begins at a multiple of 16."""
    return min(rows, DEVICE_ROWS) * DEVICE_ROW_WORK + 1024
