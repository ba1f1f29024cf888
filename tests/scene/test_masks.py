"""What masks and alpha channels leave out of a photo: ignored, or seen through; from files to what pictures are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clm.pictures import laid_over
from clm.scene import CorruptImage, ImageCache, Scene, load_scene
from clm.scene.decode import decode_cut_out, decode_opacity
from tests.scene.synthetic import POSITIVE, write_photo, write_scene

BLUE = (0.0, 0.25, 1.0)


def half_transparent(path: Path, hidden: int = 0, mode: str = "RGBA") -> Path:
    """A scene whose first photo has its left half cut away, over `hidden`; the other photos are RGB."""
    folder = write_scene(path, 3)
    photo = folder / "images" / "000.png"
    pixels = np.array(Image.open(photo).convert("RGBA"))
    pixels[:, :40] = (hidden, hidden, hidden, 0)
    Image.fromarray(pixels).convert(mode).save(photo)
    return folder


def over(scene: Scene, view: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    with ImageCache(scene, 1 << 20) as cache:
        return cache.over(view, BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_is_a_mask_or_what_is_seen_through(mode: str, tmp_path: Path) -> None:
    folder = half_transparent(tmp_path, mode=mode)
    photo, mask = over(load_scene(folder))
    assert mask is not None and mask.dtype == bool and not mask[:, :40].any() and mask[:, 40:].all()
    through, none = over(load_scene(folder, mask_mode="transparent"))
    assert none is None and (through[:, :40] == (0, 64, 255)).all()
    np.testing.assert_array_equal(through[:, 40:], photo[:, 40:])
    for means in ("ignore", "transparent"):
        assert over(load_scene(folder, mask_mode=means), 1)[1] is None


def test_colours_behind_what_is_transparent_never_show(tmp_path: Path) -> None:
    pictures = [
        over(load_scene(half_transparent(tmp_path / str(hidden), hidden), mask_mode="transparent", downscale=2))[0]
        for hidden in (0, 255)
    ]
    np.testing.assert_array_equal(*pictures)


def test_a_mask_cuts_a_photo_out_as_its_alpha_channel_would(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "scene", 2, camera=POSITIVE)
    grey = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
    photo, mask = folder / "images" / "000.png", folder / "masks" / "000.png"
    mask.parent.mkdir()
    Image.fromarray(grey).save(mask)
    by_mask = load_scene(folder, masks="masks", mask_mode="transparent", test_every=0)
    with Image.open(photo) as image:
        image.load()
    image.putalpha(Image.fromarray(grey))
    image.save(photo)
    by_alpha = load_scene(folder, mask_mode="transparent", test_every=0)
    np.testing.assert_array_equal(over(by_mask)[0], over(by_alpha)[0])
    training = by_mask.views[0].training
    opacity = decode_opacity(mask, training, alpha=False)
    np.testing.assert_array_equal(opacity, decode_opacity(photo, training, alpha=True))
    assert decode_cut_out(photo, mask, training).shape == (*opacity.shape, 3)


def test_a_mask_wins_over_an_alpha_channel_and_views_without_either_count_entirely(tmp_path: Path) -> None:
    folder = half_transparent(tmp_path)
    write_photo(folder / "masks" / "001.png", value=0)
    scene = load_scene(folder, masks="masks")
    assert any("1 of 3 images have no mask (first: 002.png)" in text for text in scene.messages)
    assert any("1 of 3 photos have an alpha channel (first: 000.png)" in text for text in scene.messages)
    write_photo(folder / "masks" / "000.png", value=255)
    assert over(load_scene(folder, masks="masks"))[1].all()  # type: ignore[union-attr]


def test_nothing_to_cut_out_is_said(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 2), mask_mode="transparent")
    assert any("nothing to cut out" in text for text in scene.messages)


def test_a_mask_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, 2)
    write_photo(folder / "masks" / "000.png")
    scene = load_scene(folder, masks="masks", mask_mode="transparent", test_every=0)
    (folder / "masks" / "000.png").write_bytes(b"no picture")
    with pytest.raises(CorruptImage, match=r"masks/000\.png"):
        over(scene)


def test_laying_over_a_colour_is_the_formula_to_half_a_level() -> None:
    rng = np.random.default_rng(0)
    opacity = rng.integers(0, 256, (50, 70), np.uint8)
    opacity[:2] = np.array([[0], [255]])
    colours = rng.integers(0, 256, (50, 70, 3), np.uint8)
    cut_out = (colours * (opacity[..., None] / 255) + 0.5).astype(np.uint8)
    want = cut_out + (255 - opacity[..., None].astype(float)) * BLUE
    assert np.abs(laid_over(cut_out, opacity, BLUE) - want).max() <= 0.51
    np.testing.assert_array_equal(laid_over(cut_out, opacity, (0, 0, 0)), cut_out)
    full = np.full((2, 2, 3), 255, np.uint8)  # a little more than what is opaque, as resizing leaves it
    assert (laid_over(full, np.full((2, 2), 250, np.uint8), (2.0, 1.0, 0.5)) == 255).all()
