"""What a browser gets that draws by itself: the model's Gaussians, in its frame, with the colours that our renderer gives them."""

from __future__ import annotations

import numpy as np
import pytest

from clm.store.store import Store
from clm.view.frame import Frame
from clm.view.splats import BrowserModel, covariances, sh_basis


def random_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    geometry, colour = np.zeros((count, 12), np.float32), rng.normal(0, 0.2, (count, 48)).astype(np.float32)
    geometry[:, :3], geometry[:, 3:7] = rng.normal(size=(count, 3)), rng.normal(size=(count, 4))
    geometry[:, 7:10], geometry[:, 10] = rng.normal(-3, 0.5, (count, 3)), rng.normal(size=count)
    return geometry, colour


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_are_those_of_the_twin(degree: int) -> None:
    torch = pytest.importorskip("torch")
    from clm.render import twin

    directions = np.random.default_rng(1).normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = twin.sh_basis(torch.from_numpy(directions), degree).numpy()
    assert np.allclose(sh_basis(directions, degree), expected, atol=1e-6)


def test_covariances_are_those_of_the_twin_times_the_scale() -> None:
    torch = pytest.importorskip("torch")
    from clm.render import twin

    geometry, _ = random_rows(50)
    rotation = twin.rotation_matrices(torch.from_numpy(geometry[:, 3:7])).numpy()
    axes = rotation * np.exp(geometry[:, None, 7:10])
    expected = 2.5**2 * axes @ axes.transpose(0, 2, 1)
    assert np.allclose(covariances(geometry[:, 3:7], geometry[:, 7:10], 2.5), expected, rtol=1e-4, atol=1e-8)


def test_the_browsers_model_is_the_store_in_its_frame_with_colours_of_one_place() -> None:
    geometry, colour = random_rows(3000)
    store = Store(len(geometry), moments=None)
    store.append(geometry, colour)
    frame = Frame.of([], geometry[:, :3])
    model = BrowserModel.of(store, 3, frame)
    assert np.allclose(model.splats.centers, (geometry[:, :3] - frame.middle) * frame.scale, atol=1e-5)
    assert np.allclose(model.splats.opacities[:, 0], 1 / (1 + np.exp(-geometry[:, 10])), atol=1e-6)
    here, there = model.colours(np.zeros(3)), model.colours(np.array([5.0, 1.0, -2.0]))
    assert here.shape == (3000, 3) and here.min() >= 0 and here.max() <= 1 and np.abs(here - there).mean() > 0.01
    row = int(np.argmax(np.linalg.norm(geometry[:, :3], axis=1)))
    direction = geometry[row : row + 1, :3] / np.linalg.norm(geometry[row, :3])
    value = 0.5 + sh_basis(direction, 3)[0] @ colour[row].reshape(16, 3)
    assert np.allclose(here[row], np.clip(value, 0, 1), atol=1e-5)
