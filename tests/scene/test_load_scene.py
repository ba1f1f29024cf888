"""A scene from a folder: matching photos, sizes, the split, masks, the frame, and the messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clm.errors import ClmError
from clm.scene import CorruptImage, ImageCache, load_scene
from tests.conftest import scene_path
from tests.scene.synthetic import POINTS, names, write_model, write_photo, write_scene


def _said(scene: object, text: str) -> bool:
    return any(text in message for message in scene.messages)  # type: ignore[attr-defined]


def test_an_ordinary_scene_loads_in_its_own_frame_without_a_word(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 4))
    assert [view.name for view in scene.views] == names(4) and scene.messages == ()
    assert scene.points.dtype == np.float32 and scene.point_colors.tolist()[0] == [10, 20, 30]
    np.testing.assert_allclose(scene.points, POINTS, atol=1e-6)
    assert not scene.offset.any() and scene.model_path == tmp_path / "sparse" / "0"
    camera = scene.views[0].camera
    assert (camera.width, camera.height, camera.fx, camera.cx) == (80, 60, 60.0, 40.0)


def test_every_eighth_name_is_held_out(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 10)
    scene = load_scene(path)
    assert scene.test.tolist() == [0, 8] and scene.train.tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    assert scene.test.dtype == scene.train.dtype == np.int32
    scene = load_scene(path, test_every=0)
    assert scene.test.tolist() == [] and scene.train.tolist() == list(range(10))


def test_a_split_that_leaves_nothing_to_train_on_is_undone_and_said(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 1))
    assert scene.train.tolist() == [0] and len(scene.test) == 0 and _said(scene, "none is held out")


def test_scale_is_a_tenth_more_than_the_farthest_camera_from_the_mean(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path / "a", 4))
    centres = np.array([view.camera.position for view in scene.views])
    assert scene.scale == pytest.approx(1.1 * np.linalg.norm(centres - centres.mean(0), axis=1).max())
    alone = load_scene(write_scene(tmp_path / "b", 1))
    distances = np.linalg.norm(alone.points - alone.views[0].camera.position, axis=1)
    assert alone.scale == pytest.approx(np.median(distances), rel=1e-3)  # one camera: how far it is from what it sees
    assert load_scene(write_scene(tmp_path / "c", 1, with_points=False)).scale == 1.0


def test_names_in_subfolders_with_equal_basenames_stay_apart(tmp_path: Path) -> None:
    write_model(tmp_path / "sparse", ["left/a.png", "right/a.png"])
    write_photo(tmp_path / "images" / "left" / "a.png", value=10)
    write_photo(tmp_path / "images" / "right" / "a.png", value=200)
    scene = load_scene(tmp_path)
    with ImageCache(scene, 1 << 20) as cache:
        assert [view.name for view in scene.views] == ["left/a.png", "right/a.png"]
        assert cache.get(0).max() == 10 and cache.get(1).min() == 200


def test_missing_photos_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 5)
    for name in ("001.png", "003.png"):
        (path / "images" / name).unlink()
    scene = load_scene(path)
    assert "2 of 5 images are missing (first: 001.png). Training without them." in scene.messages
    assert [view.name for view in scene.views] == ["000.png", "002.png", "004.png"]


def test_most_photos_missing_fails_and_suggests_images(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 5)
    for name in names(5)[:3]:
        (path / "images" / name).unlink()
    with pytest.raises(ClmError, match=r"3 of 5 images are missing .*first: 000\.png.*--images"):
        load_scene(path)


def test_the_image_folder_can_be_named_and_its_absence_is_said(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 2)
    (path / "images").rename(path / "photos")
    with pytest.raises(ClmError, match=r"No image folder.*images.*--images"):
        load_scene(path)
    assert load_scene(path, images="photos").views[0].image_path == path / "photos" / "000.png"
    assert load_scene(path, images=path / "photos").views[0].image_path == path / "photos" / "000.png"
    with pytest.raises(ClmError, match="No such folder: elsewhere"):
        load_scene(path, images="elsewhere")


def test_a_model_loads_without_photos_where_they_are_not_required(tmp_path: Path) -> None:
    write_model(tmp_path / "sparse" / "0", names(3))
    scene = load_scene(tmp_path, require_images=False)
    assert len(scene.views) == 3 and scene.views[0].image_path is None and scene.views[0].camera.width == 80


def test_photos_of_another_size_scale_the_intrinsics_and_it_is_said_once(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 3, photo_size=(40, 30)))
    camera = scene.views[1].camera
    assert (camera.width, camera.height, camera.fx, camera.cx, camera.cy) == (40, 30, 30.0, 20.0, 15.0)
    assert len(scene.messages) == 1
    assert _said(scene, "3 of 3 images differ in size") and _said(scene, "000.png, 40x30 instead of 80x60")


def test_another_aspect_ratio_names_the_file(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 3)
    write_photo(path / "images" / "001.png", (80, 50))
    with pytest.raises(ClmError, match=r"001\.png is 80x50, but its COLMAP camera is 80x60"):
        load_scene(path)
    write_photo(path / "images" / "001.png", (60, 80))
    with pytest.raises(ClmError, match="rotated by 90 degrees"):
        load_scene(path)


def test_one_pixel_of_rounding_is_not_another_aspect_ratio(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 2, photo_size=(27, 20)))
    assert (scene.views[0].camera.width, scene.views[0].camera.height) == (27, 20)


def test_an_unreadable_header_is_skipped_with_a_message_or_fails_when_strict(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 4)
    (path / "images" / "002.png").write_bytes(b"this is not a picture")
    scene = load_scene(path)
    assert len(scene.views) == 3 and _said(scene, "1 of 4 images cannot be read") and _said(scene, "002.png")
    with pytest.raises(CorruptImage, match=r"002\.png"):
        load_scene(path, strict=True)


def test_no_points_load_as_an_empty_array_with_a_message(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 3, with_points=False))
    assert scene.points.shape == (0, 3) and scene.point_colors.shape == (0, 3) and _said(scene, "no 3D points")


@pytest.mark.parametrize("pattern", ["{name}.png", "{name}"])
def test_masks_are_found_by_name_and_undistorted_with_the_photo(pattern: str, tmp_path: Path) -> None:
    path = write_scene(tmp_path, 3)
    write_photo(path / "masks" / pattern.format(name="000.png"), value=255)
    write_photo(path / "masks" / pattern.format(name="001.png"), value=0)
    scene = load_scene(path, masks="masks", downscale=2)
    assert _said(scene, "1 of 3 images have no mask (first: 002.png)")
    with ImageCache(scene, 1 << 20) as cache:
        assert cache.mask(0).shape == (30, 40) and cache.mask(0).dtype == bool  # type: ignore[union-attr]
        assert cache.mask(0).all() and not cache.mask(1).any() and cache.mask(2) is None  # type: ignore[union-attr]


def test_a_missing_mask_folder_or_one_without_matches_is_an_error(tmp_path: Path) -> None:
    path = write_scene(tmp_path, 2)
    with pytest.raises(ClmError, match="No such folder: masks"):
        load_scene(path, masks="masks")
    write_photo(path / "masks" / "other.png")
    with pytest.raises(ClmError, match=r"No mask in .* matches"):
        load_scene(path, masks="masks")


def test_a_wrong_downscale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClmError, match="downscale is 3"):
        load_scene(write_scene(tmp_path, 2), downscale=3)


def test_fox_at_downscale_2_is_265x473_with_exactly_scaled_intrinsics() -> None:
    path = scene_path("fox")
    full, half = load_scene(path), load_scene(path, downscale=2)
    assert len(full.views) == 50 and full.test.tolist() == list(range(0, 50, 8))
    a, b = full.views[0].camera, half.views[0].camera
    assert (a.width, a.height, b.width, b.height) == (530, 946, 265, 473)
    np.testing.assert_allclose([b.fx, b.fy, b.cx, b.cy], np.array([a.fx, a.fy, a.cx, a.cy]) / 2, rtol=1e-12)
    with ImageCache(half, 1 << 24) as cache:
        assert cache.get(0).shape == (473, 265, 3)
    assert load_scene(path, downscale="2").views[0].camera.width == 265


def test_ten_photos_of_ten_sizes_keep_their_own_cameras() -> None:
    scene = load_scene(scene_path("sacre_coeur"))
    sizes = {(view.camera.width, view.camera.height) for view in scene.views}
    assert len(scene.views) == 10 and len(sizes) == 10
    assert any(w > h for w, h in sizes) and any(w < h for w, h in sizes)
    with ImageCache(scene, 1 << 26) as cache:
        for index, view in enumerate(scene.views):
            assert cache.get(index).shape == (view.camera.height, view.camera.width, 3)


def test_a_rig_with_subfolders_and_six_cameras_loads_from_its_model_alone() -> None:
    scene = load_scene(scene_path("models/street_1499cams"), require_images=False)
    assert len(scene.views) == 1499 and len({v.camera.fx for v in scene.views}) == 6
    assert scene.views[0].name.startswith("cam1/") and not scene.offset.any()


def test_an_alpha_channel_and_an_exif_orientation_are_said_once_and_colours_stay(tmp_path: Path) -> None:
    plain, odd = write_scene(tmp_path / "plain"), write_scene(tmp_path / "odd")
    exif = Image.Exif()
    exif[0x0112] = 6
    for k, name in enumerate(("000.png", "001.png", "002.png")):
        with Image.open(odd / "images" / name) as image:
            image.load()
        if k < 2:
            image.putalpha(Image.new("L", image.size, 7))
        image.save(odd / "images" / name, exif=exif if k else Image.Exif())
    scene = load_scene(odd)
    said = [text for text in scene.messages if "alpha" in text or "EXIF" in text]
    assert len(said) == 2 and "2 of 4 photos have an EXIF orientation (first: 001.png)" in said[0]
    assert "2 of 4 photos have an alpha channel (first: 000.png)" in said[1] and "--mask-mode" in said[1]
    caches = [ImageCache(each, 1 << 20) for each in (scene, load_scene(plain))]
    for k in range(4):
        np.testing.assert_array_equal(*(cache.get(k) for cache in caches))
    for cache in caches:
        cache.close()
