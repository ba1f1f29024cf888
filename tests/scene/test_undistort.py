"""Every camera model becomes a pinhole camera that agrees with its pixels."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from clm.scene import ImageCache, load_scene
from clm.scene.undistort import plan_training, source_camera, training_size, undistort_pixels, undistorted
from tests.conftest import scene_path

MODELS = {
    "SIMPLE_PINHOLE": [300, 200, 150],
    "PINHOLE": [300, 310, 201, 149],
    "SIMPLE_RADIAL": [300, 200, 150, -0.1],
    "RADIAL": [300, 200, 150, 0.08, 0.02],
    "OPENCV": [300, 310, 201, 149, 0.05, 0.01, 0.002, -0.003],
    "FULL_OPENCV": [300, 310, 201, 149, 0.05, 0.01, 0.002, -0.003, 0.01, 0.01, 0.0, 0.0],
    "SIMPLE_RADIAL_FISHEYE": [300, 200, 150, 0.02],
    "RADIAL_FISHEYE": [300, 200, 150, 0.02, 0.01],
    "OPENCV_FISHEYE": [300, 310, 201, 149, 0.02, 0.01, 0.0, 0.0],
    "FOV": [300, 310, 201, 149, 0.5],
    "THIN_PRISM_FISHEYE": [300, 310, 201, 149, 0.02, 0.01, 0.001, 0.001, 0.0, 0.0, 0.001, 0.001],
    "SIMPLE_DIVISION": [300, 200, 150, -0.1],
    "DIVISION": [300, 310, 201, 149, -0.1],
    "SIMPLE_FISHEYE": [300, 200, 150],
    "FISHEYE": [300, 310, 201, 149],
    "EUCM": [300, 310, 201, 149, 0.5, 1.1],
}


def _camera(name: str) -> pycolmap.Camera:
    model = getattr(pycolmap.CameraModelId, name)
    return pycolmap.Camera(model=model, width=400, height=300, params=np.array(MODELS[name], float))


@pytest.mark.parametrize("name", MODELS)
def test_the_two_focal_form_projects_like_the_original_and_scales_each_axis(name: str) -> None:
    original = _camera(name)
    source = source_camera(original)
    points = np.random.default_rng(0).uniform([-0.5, -0.4, 1], [0.5, 0.4, 1.2], (50, 3))
    want = original.img_from_cam(points)
    np.testing.assert_allclose(source.pycolmap().img_from_cam(points), want, atol=1e-9)
    stretched = source.resized(800, 450).pycolmap().img_from_cam(points)
    np.testing.assert_allclose(stretched, want * [2.0, 1.5], atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_size", [4000, 160])
def test_a_white_photo_has_no_black_border_after_undistortion(name: str, max_size: int) -> None:
    training = plan_training(source_camera(_camera(name)), "auto", max_size)
    if training.working is None:
        assert name.endswith("PINHOLE")
        return
    white = np.full((training.working.height, training.working.width, 3), 255, np.uint8)
    pixels = undistort_pixels(white, training.working)
    assert pixels.shape == (training.pinhole[1], training.pinhole[0], 3)
    assert pixels.min() > 250
    assert max(training.width, training.height) <= max_size


@pytest.mark.parametrize("name", [n for n in MODELS if not n.endswith("PINHOLE")])
def test_undistorted_pixels_show_what_the_undistorted_camera_sees(name: str) -> None:
    """A photo whose red is the ray's x and green its y: after undistortion each pixel must hold its own pinhole ray."""
    source = source_camera(_camera(name))
    j, i = np.meshgrid(np.arange(400) + 0.5, np.arange(300) + 0.5)
    rays = source.pycolmap().cam_from_img(np.column_stack([j.ravel(), i.ravel()])).reshape(300, 400, 2)
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[..., :2] = np.clip(128 + 100 * rays, 0, 255)
    width, height, fx, fy, cx, cy = undistorted(source)
    result = undistort_pixels(photo, source).astype(float)
    want_x = 128 + 100 * (np.arange(width) + 0.5 - cx) / fx
    want_y = 128 + 100 * (np.arange(height) + 0.5 - cy) / fy
    inside = np.s_[4:-4, 4:-4]
    valid_x = np.broadcast_to((want_x > 5) & (want_x < 250), (height, width))[inside]
    valid_y = np.broadcast_to(((want_y > 5) & (want_y < 250))[:, None], (height, width))[inside]
    # 1.5 levels: one of truncation to 8 bits, half of rounding; a pixel of displacement would be 0.33 levels at the
    # centre and accumulate towards the border, so the mean is held tighter.
    error_x = (result[..., 0] - want_x)[inside][valid_x]
    error_y = (result[..., 1] - want_y[:, None])[inside][valid_y]
    assert np.abs(error_x).max() < 1.5 and np.abs(error_y).max() < 1.5
    assert abs(error_x.mean() + 0.5) < 0.15 and abs(error_y.mean() + 0.5) < 0.15


def test_the_size_rules() -> None:
    assert training_size(530, 946, 2, 1600) == (265, 473)
    assert training_size(530, 946, "auto", 1600) == (530, 946)
    assert training_size(4000, 3000, "auto", 1600) == (1600, 1200)
    assert training_size(4000, 3000, 2, 1600) == (1600, 1200)
    assert training_size(3000, 4000, 8, 1600) == (375, 500)
    assert training_size(100, 1, 8, 1600) == (13, 1)


def test_a_distorted_real_scene_gives_the_cameras_and_pixels_of_its_undistorted_twin() -> None:
    ours, twin = load_scene(scene_path("sceaux_distorted")), load_scene(scene_path("sceaux"))
    assert any("SIMPLE_RADIAL" in message for message in ours.messages)
    with ImageCache(ours, 1 << 26) as a, ImageCache(twin, 1 << 26) as b:
        for index, (x, y) in enumerate(zip(ours.views, twin.views, strict=True)):
            assert x.name == y.name and (x.camera.width, x.camera.height) == (y.camera.width, y.camera.height)
            np.testing.assert_allclose(x.camera.K, y.camera.K, atol=1e-6)
            np.testing.assert_allclose(x.camera.world_to_camera, y.camera.world_to_camera, atol=1e-9)
            if index < 2:  # the twin went through JPEG once more
                assert np.abs(a.get(index).astype(int) - b.get(index)).mean() < 4


def test_full_opencv_reads_like_simple_radial() -> None:
    full = load_scene(scene_path("models/sceaux_bin_full_opencv"), require_images=False)
    radial = load_scene(scene_path("sceaux_distorted"))
    for x, y in zip(full.views, radial.views, strict=True):
        np.testing.assert_allclose(x.camera.K, y.camera.K, atol=1e-9)


def test_observations_of_a_distorted_scene_agree_with_the_undistorted_camera_after_shrinking() -> None:
    """3D points projected by the training camera land where their observed, undistorted keypoints are."""
    path = scene_path("sceaux_distorted")
    scene = load_scene(path, max_size=500)
    model = pycolmap.Reconstruction(str(path / "sparse" / "0"))
    view = scene.views[3]
    image = next(i for i in model.images.values() if i.name == view.name)
    seen = [p for p in image.points2D if p.has_point3D()]
    rays = model.cameras[image.camera_id].cam_from_img(np.array([p.xy for p in seen]))
    observed = rays * [view.camera.fx, view.camera.fy] + [view.camera.cx, view.camera.cy]
    world = np.array([model.points3D[p.point3D_id].xyz for p in seen])
    local = world @ view.camera.world_to_camera[:3, :3].T + view.camera.world_to_camera[:3, 3]
    projected = local[:, :2] / local[:, 2:] * [view.camera.fx, view.camera.fy] + [view.camera.cx, view.camera.cy]
    assert view.camera.width == 500
    assert np.median(np.linalg.norm(projected - observed, axis=1)) < 0.3
