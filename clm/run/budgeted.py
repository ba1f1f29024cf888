"""What the budgets of device and host leave for rows, wherever a residence puts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clm.config import Config
from clm.device.budget import DeviceBudget
from clm.device.interface import Arena, Device
from clm.files import free_bytes
from clm.plan.budget import GROWTH_ROW_BYTES, TRAVELLING_BYTES, lanes_bytes, staging_bytes, store_row_bytes
from clm.plan.placement import Placement, frames_to_grow, most_rows_on_disk
from clm.plan.residency import largest_turn, views_under_way
from clm.plan.sightings import Sightings
from clm.ranks import Ranks
from clm.render import Rasterizer
from clm.run.host_memory import HostMemory
from clm.store.store import Store


class Budgeted:
    """What a residence knows of its limits; see `clm.run.residence`."""

    device: Device
    rasterizer: Rasterizer
    ranks: Ranks
    budget: DeviceBudget
    _store: Store
    _config: Config
    _host_memory: HostMemory
    _scratch: Path
    _pixels: int  # of the largest view
    _seen: Sightings
    _whole_view: int  # rows of the largest view, those of all ranks
    _in_bands: bool  # whether views are rasterised a few tile rows at a time, for lack of memory
    _reserved: int  # device bytes that placements leave free, since memory ran out once

    @property
    def arena(self) -> Arena:
        raise NotImplementedError

    def budgets(self) -> tuple[int, int]:
        """Bytes of the device's budget and of the host's, now; where the device is the CPU, both end where the host's does."""
        host, offload = self._host_memory.total(), self._config.offload
        rows, moments = self._store.rows, self._config.moments
        device = self.budget.beside(rows, moments, host, offload)
        if self.device.shares_host_memory:
            left = DeviceBudget(None).beside(rows, moments, host - self._host_beside(), offload)
            device = min(device, left)
        return device, host

    def row_limit(self) -> int:
        """How many rows --max-gaussians and the budgets of host and disk admit, those of all ranks together; at least those that
        there are. Asked by all ranks at once."""
        in_ram, on_disk = self._row_limits()
        mine = max(0 if self._config.offload == "disk" else in_ram, on_disk)
        admitted, rows = self.ranks.totals(np.array([mine, self._store.rows], np.int64)).tolist()
        return max(min(admitted, self._config.max_gaussians or admitted), rows)

    def _row_limits(self) -> tuple[int, int]:
        """How many rows there can be in host memory, and on disk."""
        left, moments, page_rows = self._left_for_store(), self._config.moments, self._store.page_rows
        in_ram = left // (store_row_bytes(moments) + GROWTH_ROW_BYTES)
        return in_ram, most_rows_on_disk(left, self._disk_free(), moments=moments, page_rows=page_rows)

    def _left_for_store(self) -> int:
        """Bytes of the host's budget that are for the store while the arena is as it is."""
        left = self.budgets()[1] - self._host_beside()
        if self.device.shares_host_memory:
            turn = largest_turn(self._seen.largest_view, self.arena.slots)
            left -= self.arena.bytes + self._temporaries(self._whole_view, turn)
        return left

    def _make_room(self, rows: int) -> None:
        """Before the rows become so many: they go to disk where host memory would not hold them."""
        store, (in_ram, on_disk) = self._store, self._row_limits()
        if store.disk is None and self._config.offload == "auto" and in_ram < rows <= on_disk:
            frames = frames_to_grow(self._left_for_store(), rows, self._config.moments, store.page_rows)
            store.keep_on_disk(min(frames, store.pages), self._scratch)

    def _disk_free(self) -> int:
        """Bytes that the disk tier may take and has taken; 0 where it may not."""
        if self._config.offload not in ("auto", "disk"):
            return 0
        return free_bytes(self._scratch) // self.ranks.local_world + (
            self._store.disk.disk_bytes if self._store.disk else 0
        )

    def _host_beside(self) -> int:
        """Bytes of the host that are for neither rows nor device: the program, photos, staging, the rasteriser's workspace."""
        largest, rasterizer = self._seen.largest_view, self.rasterizer
        staging = staging_bytes(largest, self.device.shares_host_memory)
        workspace = rasterizer.least_workspace_bytes if self._in_bands else rasterizer.workspace_bytes
        travelling = self._travelling if self.device.shares_host_memory else 0
        return self._host_memory.beside_rows + staging + workspace(self._whole_view, self._pixels) + travelling

    @property
    def _travelling(self) -> int:
        """Bytes for splats of views that several ranks rasterise, and for their gradients."""
        views = 0 if self.ranks.alone else views_under_way(self.ranks.world)
        return views * self._seen.largest_view * TRAVELLING_BYTES

    def _let_lists_take(self, placement: Placement) -> None:
        """Tile lists get what a placement in bands leaves; otherwise there is no limit."""
        device, host = self.budgets()
        left = device - placement.device_bytes
        if self.device.shares_host_memory:
            left = min(left, host - placement.host_bytes - placement.device_bytes)
        self.rasterizer.band_bytes = max(0, left) if self._in_bands else None

    def _temporaries(self, largest_view: int, turn_rows: int) -> int:
        """Device bytes beside arena and residents where turns have up to `turn_rows` rows: the rasteriser's, the lanes', and
        what is kept free."""
        lanes = 0 if self.device.shares_host_memory else lanes_bytes(turn_rows) + self._travelling
        rasterizer = self.rasterizer
        temporaries = rasterizer.least_bytes if self._in_bands else rasterizer.temporary_bytes
        return temporaries(largest_view, self._pixels, turn_rows) + lanes + self._reserved
