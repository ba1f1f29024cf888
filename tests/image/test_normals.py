"""Normals from depth: those of planes are exact, and there are none where nothing was seen."""

from __future__ import annotations

import numpy as np
import pytest

from clm.camera import Camera
from clm.image.normals import normal_colours, normals_of_depth

CAMERA = Camera(40, 30, 50.0, 45.0, 17.0, 16.0, np.eye(4))


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.5, 0.2, -0.8), (-0.7, 0.6, -0.5)])
def test_every_pixel_of_a_plane_has_its_normal(normal: tuple[float, float, float]) -> None:
    n = np.array(normal) / np.linalg.norm(normal)
    u, v = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], axis=2)
    depth = (-5.0 / (rays @ n)).astype(np.float32)
    assert (depth > 0).all()
    found = normals_of_depth(depth, CAMERA)
    np.testing.assert_allclose(found[1:-1, 1:-1], np.broadcast_to(n, (28, 38, 3)), atol=1e-4)
    assert not found[0].any() and not found[:, -1].any(), "at the edge a neighbour is missing"


def test_there_is_no_normal_beside_what_was_not_seen() -> None:
    depth = np.full((30, 40), 2, np.float32)
    depth[10, 20] = 0
    found = normals_of_depth(depth, CAMERA)
    assert not any(found[at].any() for at in [(10, 20), (9, 20), (11, 20), (10, 19), (10, 21)]) and found[9, 19].any()
    assert not normals_of_depth(np.zeros((30, 40), np.float32), CAMERA).any()
    assert normals_of_depth(depth[:2], CAMERA).shape == (2, 40, 3)


def test_a_surface_that_faces_the_viewer_is_blue() -> None:
    colours = normal_colours(np.array([[[0, 0, -1], [0, -1, 0], [0, 0, 0]]], np.float32))
    np.testing.assert_array_equal(colours, [[[128, 128, 255], [128, 255, 128], [0, 0, 0]]])
