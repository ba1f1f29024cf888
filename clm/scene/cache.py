"""Decoded photos and masks, kept in memory up to a byte budget and decoded ahead by background threads.

The state behind the lock: arrays by last use, and what is being decoded now. Invariants: the arrays held never exceed
the budget, except for a single array larger than it; one photo is never decoded twice at the same time; arrays are
read-only, because every caller shares them. Pillow and pycolmap release the GIL, so decoding runs beside training.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from clm.pictures import laid_over
from clm.scene.decode import decode_cut_out, decode_image, decode_opacity
from clm.scene.scene import Scene

_Key = tuple[str, int]  # ("image" or "mask", view index)


class ImageCache:
    """Least-recently-used cache of training images; usable from any thread."""

    def __init__(self, scene: Scene, budget_bytes: int, workers: int = 1):
        self._views = scene.views
        self._budget = int(budget_bytes)
        self._held: OrderedDict[_Key, np.ndarray] = OrderedDict()  # oldest use first
        self._bytes = 0
        self._decoding: dict[_Key, Future[np.ndarray]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")

    @property
    def bytes(self) -> int:
        """Bytes of the arrays held now."""
        with self._lock:
            return self._bytes

    def get(self, view_index: int) -> np.ndarray:
        """Photo [H, W, 3] u8, read-only, over black where it is transparent. Raises CorruptImage (a ClmError) where it cannot be
        decoded."""
        return self._array(("image", int(view_index)))

    def mask(self, view_index: int) -> np.ndarray | None:
        """[H, W], read-only: bool, True where the photo counts; u8, how opaque it is, where the view is transparent. None: the view
        has no mask."""
        if self._views[view_index].mask_path is None:
            return None
        return self._array(("mask", int(view_index)))

    def over(self, view_index: int, background: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray | None]:
        """What a picture of the view, drawn on `background` (RGB in 0..1), is compared with: the photo [H, W, 3] u8, on that colour
        where it is transparent, and a mask [H, W] bool of what counts; None: all of it."""
        photo, mask = self.get(view_index), self.mask(view_index)
        if mask is not None and self._views[view_index].transparent:
            return laid_over(photo, mask, background), None
        return photo, mask

    def prefetch(self, indices: Iterable[int]) -> None:
        """Start decoding views in the background, in this order, as many as the budget holds; errors wait for `get`."""
        room = self._budget
        with self._lock:
            for index in indices:
                for key in self._keys_of(int(index)):
                    room -= self._size(key)
                    if room < 0 or self._closed:
                        return  # more would push out what was just asked for
                    if key in self._held:
                        self._held.move_to_end(key)
                    elif key not in self._decoding:
                        self._decoding[key] = self._pool.submit(self._decode_ahead, key)

    def close(self) -> None:
        """Stop background decoding and drop everything."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)  # a decode in progress still reads its file
        with self._lock:
            self._held.clear()
            self._decoding.clear()
            self._bytes = 0

    def __enter__(self) -> ImageCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keys_of(self, index: int) -> list[_Key]:
        return [("image", index)] + ([("mask", index)] if self._views[index].mask_path is not None else [])

    def _size(self, key: _Key) -> int:
        return self._views[key[1]].nbytes // (1 if key[0] == "image" else 3)

    def _array(self, key: _Key) -> np.ndarray:
        with self._lock:
            if self._closed:
                raise RuntimeError("the image cache is closed")
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            waiting = self._decoding.get(key)
            # Still queued behind other prefetches: decoding it here and now is sooner than its turn.
            if waiting is None or waiting.cancel():
                waiting = None
                mine: Future[np.ndarray] = Future()
                mine.set_running_or_notify_cancel()
                self._decoding[key] = mine
        if waiting is not None:
            return waiting.result()  # waits for the thread that is decoding this very array
        try:
            array = self._decode_and_hold(key)
        except BaseException as error:
            mine.set_exception(error)
            raise
        mine.set_result(array)
        return array

    def _decode_ahead(self, key: _Key) -> np.ndarray:
        return self._decode_and_hold(key)

    def _decode_and_hold(self, key: _Key) -> np.ndarray:
        try:
            array = self._decode(key)
        except BaseException:
            with self._lock:
                self._decoding.pop(key, None)
            raise
        with self._lock:
            self._decoding.pop(key, None)
            if not self._closed:
                while self._held and self._bytes + array.nbytes > self._budget:
                    self._bytes -= self._held.popitem(last=False)[1].nbytes
                self._held[key] = array
                self._bytes += array.nbytes
        return array

    def _decode(self, key: _Key) -> np.ndarray:
        view = self._views[key[1]]
        if key[0] == "mask":
            assert view.mask_path is not None
            array = decode_opacity(view.mask_path, view.training, alpha=view.mask_path == view.image_path)
            array = array if view.transparent else array >= 128
        elif view.image_path is None:
            raise RuntimeError(f"{view.name} was loaded without its photo")
        elif view.mask_path is not None and view.transparent:
            array = decode_cut_out(view.image_path, view.mask_path, view.training)
        else:
            array = decode_image(view.image_path, view.training)
        array.flags.writeable = False
        return array
