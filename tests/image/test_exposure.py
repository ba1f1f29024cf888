"""The map of an exposure: its gradients by finite differences, the same bits for any thread count, the same on any device."""

from __future__ import annotations

import numpy as np
import pytest

from clm import kernels
from clm.image.exposure import PARAMETERS, expose, expose_backward, matrix_of, parameter_gradient

torch = pytest.importorskip("torch")
torch_exposure = pytest.importorskip("clm.image.torch_exposure")


def picture(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb, a map, and what its result is weighed with."""
    rng = np.random.default_rng(seed)
    rgb, weights = rng.normal(0.5, 0.3, (2, 3, height, width)).astype(np.float32)
    return rgb, matrix_of(rng.normal(0, 0.2, PARAMETERS)), weights


def test_gradients_of_the_parameters_equal_finite_differences() -> None:
    rng = np.random.default_rng(3)
    rgb, weights, parameters = rng.random((3, 50)), rng.normal(size=(3, 50)), rng.normal(0, 0.3, PARAMETERS)

    def value(p: np.ndarray) -> float:
        gain, change = np.exp(p[0]), p[1:10].reshape(3, 3)
        return float((weights * (gain * (np.eye(3) + change) @ rgb + p[10:, None])).sum())

    v_matrix = np.column_stack([weights @ rgb.T, weights.sum(axis=1)])
    ours, step = parameter_gradient(parameters, v_matrix), 1e-6
    for k in range(PARAMETERS):
        ahead, back = parameters.copy(), parameters.copy()
        ahead[k] += step
        back[k] -= step
        assert ours[k] == pytest.approx((value(ahead) - value(back)) / (2 * step), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (50, 72), (97, 131)])
def test_numpy_and_torch_equal_the_mathematics_and_its_gradients(size: tuple[int, int]) -> None:
    rgb, matrix, weights = picture(*size)
    leaf, free = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (rgb, matrix))
    seen = torch.einsum("cd,dhw->chw", free[:, :3], leaf) + free[:, 3, None, None]
    (seen * torch.tensor(weights, dtype=torch.float64)).sum().backward()
    ours = expose(rgb, matrix), *expose_backward(rgb, matrix, weights.copy())
    strided = torch.tensor(rgb).permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as gsplat's pictures are
    on_device = torch_exposure.expose(strided, torch.tensor(matrix))
    theirs = on_device, *torch_exposure.expose_backward(strided, torch.tensor(matrix), torch.tensor(weights))
    expected = (seen.detach(), leaf.grad, free.grad)
    for one, other, truth in zip(ours, theirs, expected, strict=True):
        bound = 2e-6 * max(1.0, float(truth.abs().max()))
        assert np.abs(one - truth.numpy()).max() < bound and np.abs(other.numpy() - truth.numpy()).max() < bound
    assert on_device.is_contiguous()


def test_the_map_gives_the_same_bits_for_any_thread_count() -> None:
    rgb, matrix, weights = picture(200, 133)
    before, results = kernels.get_threads(), []
    try:
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            results.append([expose(rgb, matrix), *expose_backward(rgb, matrix, weights.copy())])
    finally:
        kernels.set_threads(before)
    assert all(np.array_equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
