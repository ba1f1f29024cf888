"""Decoding photos of every kind, and the byte-bounded cache."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clm.scene.cache as cache_module
from clm.errors import ClmError
from clm.scene import CorruptImage, ImageCache, Scene, load_scene
from clm.scene.decode import decode_image
from clm.scene.undistort import Training
from tests.scene.synthetic import write_model, write_photo, write_scene

AS_IS = Training(None, (80, 60, 60.0, 60.0, 40.0, 30.0), 80, 80, 60)
ONE = 80 * 60 * 3  # bytes of one synthetic photo


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return load_scene(write_scene(tmp_path, 6))


def _ramp() -> np.ndarray:
    return np.add.outer(np.arange(60) * 2, np.arange(80)).astype(np.uint8)  # [60, 80], 0..197


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "P", "I;16", "LA"])
def test_every_kind_of_photo_becomes_rgb_of_8_bits(kind: str, tmp_path: Path) -> None:
    grey = _ramp()
    if kind == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(kind)
    if kind in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.full((60, 80), 7, np.uint8)))
    image.save(tmp_path / "a.png")
    array = decode_image(tmp_path / "a.png", AS_IS)
    assert array.shape == (60, 80, 3) and array.dtype == np.uint8 and array.flags.c_contiguous
    np.testing.assert_array_equal(array, np.repeat(grey[:, :, None], 3, axis=2))


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_ramp()).convert("RGB").save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert decode_image(tmp_path / "a.jpg", AS_IS).shape == (60, 80, 3)


def test_shrinking_is_antialiased_and_keeps_pixels_where_the_camera_says(tmp_path: Path) -> None:
    checks = np.indices((240, 320)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
    shrunk = decode_image(tmp_path / "checks.png", AS_IS)
    assert shrunk.shape == (60, 80, 3) and np.abs(shrunk.astype(int) - 127.5).max() < 8
    ramp = np.broadcast_to((np.arange(403) + 0.5) * 0.5, (301, 403))  # odd sizes: no factor divides them
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.png")
    columns = decode_image(tmp_path / "ramp.png", AS_IS)[30, :, 0].astype(float)
    want = (np.arange(80) + 0.5) * (403 / 80) * 0.5
    assert np.abs(columns - want)[3:-3].max() < 1.2


def test_get_returns_the_photo_read_only(scene: Scene) -> None:
    with ImageCache(scene, 10 * ONE) as cache:
        array = cache.get(2)
        want = np.asarray(Image.open(scene.views[2].image_path).convert("RGB"))  # type: ignore[arg-type]
        np.testing.assert_array_equal(array, want)
        assert not array.flags.writeable and cache.get(2) is array


def test_the_cache_never_exceeds_its_budget_and_drops_the_least_recently_used(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counting(path: Path, training: Training) -> np.ndarray:
        decoded.append(path.name)
        return decode_image(path, training)

    monkeypatch.setattr(cache_module, "decode_image", counting)
    with ImageCache(scene, 2 * ONE + 5) as cache:
        for index in (0, 1, 0, 2, 0, 1):
            cache.get(index)
            assert cache.bytes <= 2 * ONE
    assert decoded == ["000.png", "001.png", "002.png", "001.png"]


def test_a_single_photo_larger_than_the_budget_is_held_alone(scene: Scene) -> None:
    with ImageCache(scene, ONE // 2) as cache:
        assert cache.get(0) is cache.get(0)
        cache.get(1)
        assert cache.bytes == ONE


def test_prefetch_decodes_in_the_background_and_stops_at_the_budget(scene: Scene) -> None:
    with ImageCache(scene, 3 * ONE) as cache:
        cache.prefetch(range(6))
        deadline = time.monotonic() + 10
        while cache.bytes < 3 * ONE and time.monotonic() < deadline:
            time.sleep(0.005)
        assert cache.bytes == 3 * ONE
        assert sorted(key[1] for key in cache._held) == [0, 1, 2]


def test_many_threads_decode_each_photo_once_and_agree(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def slow(path: Path, training: Training) -> np.ndarray:
        decoded.append(path.name)
        time.sleep(0.01)
        return decode_image(path, training)

    monkeypatch.setattr(cache_module, "decode_image", slow)
    results: list[list[np.ndarray]] = []
    with ImageCache(scene, 100 * ONE, workers=2) as cache:
        cache.prefetch([5, 4, 3])
        threads = [
            threading.Thread(target=lambda: results.append([cache.get(i) for i in (3, 0, 4, 1, 5)])) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert sorted(decoded) == ["000.png", "001.png", "003.png", "004.png", "005.png"]
    assert len(results) == 6 and all(a is b for row in results for a, b in zip(row, results[0], strict=True))


def test_a_photo_with_damaged_pixels_is_reported_by_name_every_time(tmp_path: Path) -> None:
    write_model(tmp_path / "sparse", ["a.jpg", "b.jpg"])
    for name in ("a.jpg", "b.jpg"):
        write_photo(tmp_path / "images" / name)
    whole = (tmp_path / "images" / "b.jpg").read_bytes()
    (tmp_path / "images" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    scene = load_scene(tmp_path)
    with ImageCache(scene, 10 * ONE) as cache:
        cache.prefetch([1, 0])
        for _ in range(2):
            with pytest.raises(CorruptImage, match=r"Cannot decode the image .*b\.jpg") as error:
                cache.get(1)
            assert isinstance(error.value, ClmError) and error.value.path == tmp_path / "images" / "b.jpg"
        assert cache.get(0).shape == (60, 80, 3)


def test_a_closed_cache_holds_nothing_and_refuses(scene: Scene) -> None:
    cache = ImageCache(scene, 10 * ONE)
    cache.get(0)
    cache.prefetch(range(6))
    cache.close()
    assert cache.bytes == 0
    with pytest.raises(RuntimeError, match="closed"):
        cache.get(0)
