"""Odd and impossible input: accepted properly, or refused in a sentence that names the file and the thing."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clm.errors import ClmError
from clm.files import write_json
from clm.pictures import file_stems
from clm.render.cpu import Render
from clm.run.evaluate import measure_views
from clm.run.events import Message
from clm.scene import ImageCache, camera_from_json, cameras_json, load_scene
from tests.scene.synthetic import write_photo, write_scene


def edit_text(scene: Path, file: str, row: int, column: int, value: str) -> None:
    """Replace one field of the `row`-th line that is no comment."""
    path = scene / "sparse" / "0" / file
    lines = path.read_text().splitlines()
    at = [k for k, line in enumerate(lines) if not line.startswith("#")][row]
    fields = lines[at].split(" ")
    fields[column] = value
    lines[at] = " ".join(fields)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("on_disk", ["latin-1", "utf-8"])
def test_a_latin_1_image_name_loads_and_finds_its_photo(tmp_path: Path, text: bool, on_disk: str) -> None:
    scene = write_scene(tmp_path, 3, text=text)
    path = scene / "sparse" / "0" / ("images.txt" if text else "images.bin")
    path.write_bytes(path.read_bytes().replace(b"001.png", b"caf\xe9png"[:7]))
    write_photo(scene / "images" / "new.png")
    os.replace(scene / "images" / "new.png", os.fsencode(scene / "images") + b"/" + "cafépng".encode(on_disk))
    loaded = load_scene(scene, test_every=0)
    assert [view.name for view in loaded.views] == ["000.png", "002.png", "cafépng"] and not loaded.messages
    with ImageCache(loaded, 1 << 20) as images:
        assert images.get(2).shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (4, "-60", "impossible parameters"),
        (4, "0", "impossible parameters"),
        (6, "1e300", "impossible parameters"),
        (2, "0", "no size of a photo"),
        (3, "4000000000", "no size of a photo"),
    ],
)
def test_an_impossible_camera_is_refused_with_its_number(tmp_path: Path, column: int, value: str, said: str) -> None:
    scene = write_scene(tmp_path, 3, text=True)
    edit_text(scene, "cameras.txt", 0, column, value)
    with pytest.raises(ClmError, match=rf"Camera 1 of .*sparse.*{said}"):
        load_scene(scene)


def test_quaternions_of_any_length_are_the_same_rotation_and_zero_ones_are_refused(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 4) / "sparse" / "0" / "images.bin"
    want = load_scene(tmp_path).views[3].camera.world_to_camera
    data = bytearray(path.read_bytes())
    record = (len(data) - 8) // 4  # no observations, names of one length
    at = 8 + 3 * record + 4
    data[at : at + 32] = struct.pack("<4d", *(7.5 * np.array(struct.unpack_from("<4d", data, at))))
    path.write_bytes(data)
    np.testing.assert_allclose(load_scene(tmp_path).views[3].camera.world_to_camera, want, atol=1e-9)
    data[8 + record + 4 : 8 + record + 36] = bytes(32)
    path.write_bytes(data)
    with pytest.raises(ClmError, match=r"images\.bin is damaged: image 2 of 4 has a quaternion of length 0"):
        load_scene(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 3) / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes().replace(b"001.png", b"000.png"))
    with pytest.raises(ClmError, match=r"two images called 000\.png|is damaged"):
        load_scene(tmp_path)


def test_a_mask_of_another_aspect_is_refused_by_name(tmp_path: Path) -> None:
    scene = write_scene(tmp_path, 3)
    for name in ("000", "001", "002"):
        write_photo(scene / "masks" / f"{name}.png", (80, 60) if name != "001" else (60, 60))
    with pytest.raises(ClmError, match=r"masks/001\.png is 60x60.*another aspect"):
        load_scene(scene, masks="masks")
    write_photo(scene / "masks" / "001.png", (40, 30))
    assert len(load_scene(scene, masks="masks").views) == 3


def test_a_black_mask_leaves_its_view_out_of_the_figures_with_a_warning(tmp_path: Path) -> None:
    scene_folder = write_scene(tmp_path, 2)
    for name, value in (("000", 0), ("001", 255)):
        write_photo(scene_folder / "masks" / f"{name}.png", value=value)
    scene, said = load_scene(scene_folder, masks="masks", test_every=0), []
    grey = Render(np.full((3, 60, 80), 0.5, np.float32), np.ones((60, 80), np.float32), None, 1)
    with ImageCache(scene, 1 << 20) as images:
        result = measure_views(lambda camera: grey, scene, images, [0, 1], said.append)
    assert list(result["per_view"]) == ["001.png"] and np.isfinite(result["psnr"])
    assert any("000.png is not evaluated: its mask leaves no pixel" in getattr(e, "text", "") for e in said)


def test_an_evaluation_names_three_unreadable_photos_and_counts_the_others(tmp_path: Path) -> None:
    folder, said = write_scene(tmp_path, 6), []
    scene = load_scene(folder, test_every=0)
    for k in range(5):
        (folder / "images" / f"{k:03d}.png").write_bytes(b"")
    grey = Render(np.full((3, 60, 80), 0.5, np.float32), np.ones((60, 80), np.float32), None, 1)
    with ImageCache(scene, 1 << 20) as images:
        result = measure_views(lambda camera: grey, scene, images, range(6), said.append)
    assert list(result["per_view"]) == ["005.png"]
    texts = [event.text for event in said if isinstance(event, Message)]
    assert [text[:25] for text in texts[:-1]] == [f"00{k}.png is not evaluated:" for k in range(3)]
    assert texts[-1] == "Not evaluated either: 2 more of 6 views."


def test_lpips_is_measured_where_its_weights_can_be_read_and_costs_a_warning_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, said = load_scene(write_scene(tmp_path, 2), test_every=0), list[object]()
    grey = Render(np.full((3, 60, 80), 0.5, np.float32), np.ones((60, 80), np.float32), None, 1)

    def refused() -> None:
        raise ClmError("weights/alexnet.ckpt does not hold the weights of LPIPS.")

    with ImageCache(scene, 1 << 20) as images:
        monkeypatch.setattr("clm.run.evaluate.installed_lpips", refused)
        without = measure_views(lambda camera: grey, scene, images, [0, 1], said.append)
        monkeypatch.setattr("clm.run.evaluate.installed_lpips", lambda: lambda rgb, photo, mask: float(photo.max()))
        measured = measure_views(lambda camera: grey, scene, images, [0, 1], said.append)
    assert "lpips" not in without and [event.level for event in said if isinstance(event, Message)] == ["warning"]
    largest = [view["lpips"] for view in measured["per_view"].values()]
    assert measured["lpips"] == np.mean(largest) > 0 and {k: measured[k] for k in ("psnr", "ssim")} == {
        k: without[k] for k in ("psnr", "ssim")
    }


def test_no_json_file_holds_a_number_that_json_has_no_name_for(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"psnr": float("nan"), "views": [float("inf"), 1.5, None]})
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == {"psnr": None, "views": [None, 1.5, None]}


def test_pictures_of_different_images_never_share_a_file() -> None:
    names = ["a.jpg", "a.png", "x/a.jpg", "x__a.jpg", "b.jpg", "B.jpg", "../../c.jpg", "", "n" * 300 + ".jpg"]
    stems = file_stems(names)
    assert stems[:3] == ["a.jpg", "a.png", "x__a"] and stems[4] == "b"
    assert len({stem.casefold() for stem in stems}) == len(names)
    assert all(stem and "/" not in stem and len(stem) < 100 for stem in stems)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"width": 1e400},
        {"height": 0},
        {"fx": float("nan")},
        {"fy": -3.0},
        {"position": [1e300, 0, 0]},
        {"position": ["a", 0, 0]},
        {"rotation": [[float("nan")] * 3] * 3},
        {"near": 5.0, "far": 1.0},
    ],
)
def test_an_absurd_camera_of_a_camera_file_is_refused_by_number(tmp_path: Path, change: dict[str, object]) -> None:
    entries = cameras_json(load_scene(write_scene(tmp_path, 2)))
    entries[1] |= change
    with pytest.raises(ClmError, match="Camera 1 of the camera file"):
        camera_from_json(entries)


def test_the_photos_of_a_scene_may_be_of_any_kind_that_pillow_opens(tmp_path: Path) -> None:
    scene = write_scene(tmp_path, 3)
    grey = Image.fromarray(np.full((60, 80), 128, np.uint8))
    for k, mode in enumerate(("CMYK", "P", "LA")):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        grey.convert("RGB" if mode != "LA" else "L").convert(mode).save(scene / "images" / f"00{k}.png", format=kind)
    with ImageCache(load_scene(scene), 1 << 20) as images:
        assert all(abs(int(images.get(k).mean()) - 128) < 12 for k in range(3))
