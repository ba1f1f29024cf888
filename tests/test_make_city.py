"""The generated city: its photos, its points and its model agree, and a view sees what the flight's geometry says."""

from __future__ import annotations

import filecmp
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clm.scene import load_scene
from tests.demo_run import REPOSITORY, clm, read_json

sys.path.insert(0, str(REPOSITORY / "scripts"))

import make_city
from scene_parts.capture import Lens, project, rays
from scene_parts.city import BUILDING
from scene_parts.city_light import first_met, in_picture
from scene_parts.solids import Solid

VIEWS, POINTS, LENS = 24, 20_000, Lens(160, 120, 176.0)


def capture(out: Path, seed: int = 5) -> make_city.Capture:
    return make_city.plan_capture(out, VIEWS, POINTS, LENS, 80.0, (0.75, 0.65), seed)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> make_city.Capture:
    made = capture(tmp_path_factory.mktemp("city"))
    make_city.write_capture(made, 2)
    return made


def test_a_city_is_a_scene_with_all_its_photos_and_points(city: make_city.Capture) -> None:
    scene = load_scene(city.out)
    assert (len(scene.views), len(scene.points), scene.messages) == (VIEWS, POINTS, ())
    for view, pose in zip(scene.views, city.flight.poses, strict=True):
        np.testing.assert_allclose(view.camera.world_to_camera[:3, 3], pose[:3, 3], atol=1e-9)
        assert Image.open(view.image_path).size == (LENS.width, LENS.height)


def test_points_have_the_colours_of_the_photos_that_see_them(city: make_city.Capture) -> None:
    scene = load_scene(city.out)
    world = scene.points[:, [0, 2, 1]] * [1, 1, -1]  # z up again
    for view in (0, 9, 14):
        pose = city.flight.poses[view]
        pixels, depth = project(LENS, pose, world)
        inside = (depth > 0) & (pixels > 1).all(axis=1) & (pixels < [LENS.width - 1, LENS.height - 1]).all(axis=1)
        x, y = pixels[inside].astype(int).T
        grid_y, grid_x = np.divmod(np.arange(LENS.width * LENS.height), LENS.width)
        origin, direction = rays(LENS, pose, grid_x + 0.5, grid_y + 0.5)
        shape = (3, LENS.height, LENS.width)
        rectangles = in_picture(city.city, LENS, pose)
        distance, _ = first_met(city.city, rectangles, origin.reshape(shape), direction.reshape(shape))
        apart = np.linalg.norm(world[inside] + pose[:3, :3].T @ pose[:3, 3], axis=1) - distance[y, x]
        visible = np.abs(apart) < 0.4
        assert visible.sum() > 400 and visible.mean() > 0.5
        photo = np.asarray(Image.open(scene.views[view].image_path), np.float64)[y, x][visible]
        error = np.abs(photo - scene.point_colors[inside][visible]).mean(axis=1)
        wrong = np.abs(photo[::-1] - scene.point_colors[inside][visible]).mean(axis=1)
        assert np.median(error) < 12 and np.median(error) < 0.35 * np.median(wrong), (
            np.median(error),
            np.median(wrong),
        )


def test_every_roof_has_its_points(city: make_city.Capture) -> None:
    parts, flight = city.city, city.flight
    world = np.concatenate([make_city.find_points(city, band)[0] for band in make_city.bands(city)])[:, [0, 2, 1]]
    world *= [1, 1, -1]  # z up again
    tops = parts.at[:, 2] + parts.half[:, 2]
    covered = (np.abs(parts.at[:, :2]) + 8 < flight.high).all(axis=1) & (parts.half[:, :2] > 5).all(axis=1)
    roofs = np.flatnonzero(covered & (parts.paint == BUILDING) & (parts.sine == 0) & (tops > 9))
    assert len(roofs) >= 3
    for index in roofs:
        above = (np.abs(world[:, :2] - parts.at[index, :2]) < parts.half[index, :2]).all(axis=1)
        assert (above & (np.abs(world[:, 2] - tops[index]) < 0.2)).sum() > 30
        assert not (above & (world[:, 2] < tops[index] - 0.5)).sum() > 0.5 * above.sum()


def test_rays_along_the_sides_of_a_solid_meet_it() -> None:
    down, places = np.array([0, 0, -1], np.float32), np.array([[0, 0, 9], [0.4, 0.4, 9], [2, 0, 9]], np.float32).T
    for shape, size in (("box", (1, 1, 2)), ("cylinder", (1, 2)), ("gable", (1, 1, 2)), ("sphere", (1,))):
        solid = Solid(shape, np.array(size, np.float32), np.zeros(3, np.float32), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            met = solid.hit(places, np.broadcast_to(down[:, None], places.shape))
        assert np.isfinite(met).tolist() == [True, True, False], shape
        assert met[0] == pytest.approx(9 - size[-1])


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_city(
    city: make_city.Capture, tmp_path: Path
) -> None:
    again = capture(tmp_path)
    (tmp_path / "images").mkdir()
    make_city.write_photo(again, 3)
    name = f"images/{make_city.photo_name(3)}"
    assert filecmp.cmp(tmp_path / name, city.out / name, shallow=False)
    band = make_city.bands(city)[1]
    for a, b in zip(make_city.find_points(again, band), make_city.find_points(city, band), strict=True):
        np.testing.assert_array_equal(a, b)
    other = capture(tmp_path, seed=6)
    assert len(other.city.solids) != len(city.city.solids) or (other.city.at != city.city.at).any()


def test_a_view_sees_the_share_of_the_city_that_its_footprint_covers(city: make_city.Capture) -> None:
    foot = np.prod(np.array([LENS.width, LENS.height]) * 80.0 / LENS.focal)
    expected = foot / np.prod(city.flight.high - city.flight.low)
    shares = make_city.shares_seen(city)
    assert 0.8 * expected < np.median(shares) < 1.6 * expected
    assert shares.max() < 2.5 * expected


def test_a_model_trained_with_the_preset_comes_nearer_to_views_that_are_held_out(
    city: make_city.Capture, tmp_path: Path
) -> None:
    short = ("--preset", "city", "--batch-size", "4", "--downscale", "2", "-q")
    quality = []
    for images in (4, 160):
        run = tmp_path / str(images)
        result = clm("train", city.out, "-o", run, *short, "--iterations", str(images))
        assert result.returncode == 0, result.stderr
        quality.append(read_json(run / "metrics.json")["test"]["psnr"])
    assert quality[1] > quality[0] + 3, quality
