"""What readers that are not ours find in the files: gsply, plyfile, splat-transform, and decoders written here from the formats'
descriptions, one row at a time."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plyfile import PlyData

from clm.formats.options import Options
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, QUATS, SH0, SH_C0, SHN
from tests.formats.models import angle, export, in_order_of, model_rows, sigmoid, written

ROWS = 300  # no multiple of 256


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model as a PLY and in every other format."""
    folder = tmp_path_factory.mktemp("judges")
    source = written(folder / "source.ply", *model_rows(ROWS), antialiased=True)
    for name in ("model.compressed.ply", "model.splat", "model.spz", "model.glb"):
        export(source, folder / name)
    export(source, folder / "fine.spz", Options(sh_bits="8"))
    return folder


def compare(
    folder: Path,
    theirs: dict[str, np.ndarray],
    *,
    centre: float,
    scale: float,
    opacity: float,
    turn: float,
    rgb: float,
    sh: float,
) -> None:
    """Columns as another reader gives them (means, log-scales, opacities after the sigmoid, wxyz, sh0, shN) against the model."""
    ours, colours = in_order_of(theirs["means"], folder / "source.ply", centre)
    np.testing.assert_allclose(theirs["scales"], ours[:, LOG_SCALES], atol=scale, rtol=0)
    np.testing.assert_allclose(theirs["opacities"], sigmoid(ours[:, LOGIT_OPACITIES]), atol=opacity, rtol=0)
    assert angle(theirs["quats"], ours[:, QUATS]) <= turn
    np.testing.assert_allclose(SH_C0 * theirs["sh0"], SH_C0 * colours[:, SH0], atol=rgb, rtol=0)
    if "shN" in theirs:
        np.testing.assert_allclose(theirs["shN"].reshape(len(ours), 45), colours[:, SHN], atol=sh, rtol=0)


@pytest.mark.parametrize(("name", "sh"), [("model.spz", 0.0314), ("fine.spz", 0.0040)])
def test_gsply_reads_an_spz_as_it_was_meant(files: Path, name: str, sh: float) -> None:
    gsply = pytest.importorskip("gsply_cpp", reason="gsply has no compiled reader here")
    data = gsply.read_spz(str(files / name))
    theirs = {key: np.asarray(data[key]) for key in ("means", "scales", "quats", "opacities", "sh0", "shN")}
    theirs["opacities"] = sigmoid(theirs["opacities"].reshape(-1))
    compare(files, theirs, centre=1 / 8191, scale=0.0313, opacity=0.0021, turn=0.008, rgb=0.0038, sh=sh)


# ---- decoders from the descriptions ----


def test_every_bit_of_a_compressed_ply_is_as_described(files: Path) -> None:
    data = PlyData.read(files / "model.compressed.ply")
    assert [element.name for element in data.elements] == ["chunk", "vertex", "sh"]
    chunk, vertex, sh = (element.data for element in data.elements)
    assert len(chunk) == 2 and len(vertex) == len(sh) == ROWS and "SplatRenderMode: mip" in data.comments

    def unorm(value: int, shift: int, bits: int) -> float:
        return ((int(value) >> shift) & ((1 << bits) - 1)) / ((1 << bits) - 1)

    rows: dict[str, list[Any]] = {name: [] for name in ("means", "scales", "quats", "opacities", "sh0", "shN")}
    for i, (row, coefficients) in enumerate(zip(vertex, sh, strict=True)):
        ends = chunk[i // 256]

        def within(axes: str, prefix: str, parts: list[float], ends: Any = ends) -> list[float]:
            pairs = [(float(ends[f"min_{prefix}{axis}"]), float(ends[f"max_{prefix}{axis}"])) for axis in axes]
            return [low + (high - low) * part for (low, high), part in zip(pairs, parts, strict=True)]

        thirds = [(21, 11), (11, 10), (0, 11)]
        rows["means"].append(within("xyz", "", [unorm(row["packed_position"], *bits) for bits in thirds]))
        rows["scales"].append(within("xyz", "scale_", [unorm(row["packed_scale"], *bits) for bits in thirds]))
        rgb = within("rgb", "", [unorm(row["packed_color"], shift, 8) for shift in (24, 16, 8)])
        rows["sh0"].append([(value - 0.5) / SH_C0 for value in rgb])
        rows["opacities"].append(unorm(row["packed_color"], 0, 8))
        others = [(unorm(row["packed_rotation"], shift, 10) - 0.5) * math.sqrt(2) for shift in (20, 10, 0)]
        others.insert(int(row["packed_rotation"]) >> 30, math.sqrt(1 - sum(part * part for part in others)))
        rows["quats"].append(others)
        values = np.array([(coefficients[f"f_rest_{k}"] + 0.5) / 256 * 8 - 4 for k in range(45)])
        rows["shN"].append(values.reshape(3, 15).T)
    theirs = {name: np.array(values) for name, values in rows.items()}
    compare(files, theirs, centre=0.01, scale=0.0045, opacity=0.0021, turn=0.006, rgb=0.005, sh=0.0157)


def test_every_byte_of_a_splat_file_is_as_described_and_what_is_largest_and_most_opaque_comes_first(
    files: Path,
) -> None:
    raw = (files / "model.splat").read_bytes()
    records = [struct.unpack_from("<6f8B", raw, start) for start in range(0, len(raw), 32)]
    assert len(records) == ROWS
    values = np.array(records)
    weights = np.prod(values[:, 3:6], axis=1) * values[:, 9]
    assert (weights[1:] <= weights[:-1] * 1.3).all() and weights[0] > 1000 * weights[-1]  # opacities have 8 bits
    quats = (values[:, 10:14] - 128) / 128
    theirs = {"means": values[:, :3], "scales": np.log(values[:, 3:6]), "opacities": values[:, 9] / 255, "quats": quats}
    theirs["sh0"] = (values[:, 6:9] / 255 - 0.5) / SH_C0
    compare(files, theirs, centre=0, scale=1e-6, opacity=0.0021, turn=0.03, rgb=0.0021, sh=0)


@pytest.mark.parametrize(("name", "sh"), [("model.spz", 0.0314), ("fine.spz", 0.0040)])
def test_every_byte_of_an_spz_is_as_described(files: Path, name: str, sh: float) -> None:
    raw = gzip.decompress((files / name).read_bytes())
    assert struct.unpack_from("<IIIBBBB", raw) == (0x5053474E, 3, ROWS, 3, 12, 1, 0) and len(raw) == 16 + 65 * ROWS
    starts = np.cumsum([16, 9 * ROWS, ROWS, 3 * ROWS, 3 * ROWS, 4 * ROWS])
    rows: dict[str, list[Any]] = {name: [] for name in ("means", "opacities", "sh0", "scales", "quats", "shN")}
    for i in range(ROWS):
        at = starts + i * np.array([9, 1, 3, 3, 4, 45])
        centre = [
            int.from_bytes(raw[at[0] + 3 * k : at[0] + 3 * k + 3], "little", signed=True) / 4096 for k in range(3)
        ]
        rows["means"].append(centre)
        rows["opacities"].append(raw[at[1]] / 255)
        rows["sh0"].append([(raw[at[2] + k] / 255 - 0.5) / 0.15 for k in range(3)])
        rows["scales"].append([raw[at[3] + k] / 16 - 10 for k in range(3)])
        word = int.from_bytes(raw[at[4] : at[4] + 4], "little")
        others = [
            (word >> shift & 511) / 511 * math.sqrt(0.5) * (-1) ** (word >> shift + 9 & 1) for shift in (20, 10, 0)
        ]
        others.insert(word >> 30, math.sqrt(1 - sum(part * part for part in others)))  # x, y, z, w
        rows["quats"].append([others[3], *others[:3]])
        rows["shN"].append([(raw[at[5] + k] - 128) / 128 for k in range(45)])
    theirs = {name: np.array(values) for name, values in rows.items()}
    compare(files, theirs, centre=1 / 8191, scale=0.0313, opacity=0.0021, turn=0.008, rgb=0.0038, sh=sh)
    lowest = {value % 4 for value in raw[starts[5] : starts[5] + 9]} | {
        value % 8 for value in raw[starts[5] + 9 : starts[5] + 45]
    }
    assert (lowest == {0}) == (name == "model.spz"), "fewer bits are what compresses"


def glb_columns(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Attributes [n, components] of a GLB's one primitive as the base specification of glTF says where they lie, and its JSON."""
    raw = path.read_bytes()
    magic, version, total, length, kind = struct.unpack_from("<4sIII4s", raw)
    assert (magic, version, total, kind) == (b"glTF", 2, len(raw), b"JSON") and length % 4 == 0
    document = json.loads(raw[20 : 20 + length])
    size, kind = struct.unpack_from("<I4s", raw, 20 + length)
    assert kind == b"BIN\0" and size == document["buffers"][0]["byteLength"] == len(raw) - length - 28
    columns = {}
    for name, index in document["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        start = 28 + length + view["byteOffset"] + accessor.get("byteOffset", 0)
        values = np.frombuffer(
            raw, {5126: "<f4", 5121: "u1"}[accessor["componentType"]], accessor["count"] * width, start
        )
        columns[name] = values.reshape(-1, width)
    return columns, document


def test_a_glb_says_what_viewers_require_and_has_every_attribute_of_the_extension(files: Path) -> None:
    columns, document = glb_columns(files / "model.glb")
    assert document["asset"]["version"] == "2.0" and document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    [primitive] = document["meshes"][0]["primitives"]
    extension = primitive["extensions"]["KHR_gaussian_splatting"]
    assert (
        primitive["mode"] == 0 and extension["kernel"] == "ellipse" and extension["colorSpace"] == "srgb_rec709_display"
    )
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(position["min"], columns["POSITION"].min(axis=0))
    np.testing.assert_array_equal(position["max"], columns["POSITION"].max(axis=0))
    name = "KHR_gaussian_splatting:{}".format
    x, y, z, w = columns[name("ROTATION")].T.astype(np.float64)
    np.testing.assert_allclose(x * x + y * y + z * z + w * w, 1, atol=1e-6)
    # Half a turn about z brings glTF's y, which points up, to that of a PLY.
    theirs = {"means": columns["POSITION"] * [-1, -1, 1], "quats": np.column_stack([z, y, -x, -w])}
    theirs |= {"scales": np.log(columns[name("SCALE")]), "opacities": columns[name("OPACITY")][:, 0]}
    theirs["sh0"] = columns[name("SH_DEGREE_0_COEF_0")]
    compare(files, theirs, centre=0, scale=1e-6, opacity=1e-6, turn=1e-3, rgb=1e-7, sh=0)
    assert (
        columns["COLOR_0"]
        == np.rint(255 * np.column_stack([np.clip(0.5 + SH_C0 * theirs["sh0"], 0, 1), theirs["opacities"]]))
    ).mean() > 0.99


def basis(direction: np.ndarray) -> np.ndarray:
    """The 15 functions above degree 0 at unit directions [n, 3], up to their constants, in 3DGS's order [n, 15]."""
    x, y, z = direction.T
    first = [-y, z, -x, x * y, -y * z, 2 * z * z - x * x - y * y, -x * z, x * x - y * y]
    last = [
        -y * (3 * x * x - y * y),
        x * y * z,
        -y * (4 * z * z - x * x - y * y),
        z * (2 * z * z - 3 * x * x - 3 * y * y),
    ]
    last += [-x * (4 * z * z - x * x - y * y), z * (x * x - y * y), -x * (x * x - 3 * y * y)]
    return np.stack(first + last, axis=1)


def test_colours_of_a_glb_are_those_of_the_model_seen_from_the_turned_direction(files: Path) -> None:
    columns, _ = glb_columns(files / "model.glb")
    names = [f"KHR_gaussian_splatting:SH_DEGREE_{d}_COEF_{c}" for d in (1, 2, 3) for c in range(2 * d + 1)]
    turned = np.stack([columns[name] for name in names], axis=1)  # [n, 15, 3]
    _, colours = in_order_of(columns["POSITION"] * [-1, -1, 1], files / "source.ply", 0)
    directions = np.random.default_rng(0).normal(size=(ROWS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen = np.einsum("nk,nkc->nc", basis(directions * [-1, -1, 1]), turned)
    np.testing.assert_allclose(
        seen, np.einsum("nk,nkc->nc", basis(directions), colours[:, SHN].reshape(-1, 15, 3)), atol=1e-5
    )


def test_a_glb_is_that_of_splat_transform_column_by_column(files: Path, tmp_path: Path) -> None:
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("node is not installed (npx not found)")
    command = [npx, "-y", "@playcanvas/splat-transform@2.7.1", str(files / "source.ply"), str(tmp_path / "theirs.glb")]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        pytest.skip("splat-transform could not be fetched in 30 s")
    if result.returncode:
        text = result.stdout + result.stderr
        assert "npm ERR" in text or "npm error" in text, text
        pytest.skip("splat-transform could not be fetched")
    (theirs, one), (ours, other) = (glb_columns(path) for path in (tmp_path / "theirs.glb", files / "model.glb"))
    assert list(theirs) == list(ours)
    rotation = "KHR_gaussian_splatting:ROTATION"
    assert angle(theirs.pop(rotation), ours.pop(rotation)) < 1e-3
    for name, column in theirs.items():
        np.testing.assert_allclose(
            ours[name].astype(np.float64), column, atol=1 if name == "COLOR_0" else 2e-6, err_msg=name
        )
    assert one["meshes"][0]["primitives"][0]["extensions"] == other["meshes"][0]["primitives"][0]["extensions"]
