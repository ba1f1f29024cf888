"""PLY in: files of other tools, in every order and type, and files that are not what they seem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from clm.errors import ClmError
from clm.formats.ply_read import open_ply
from clm.formats.ply_write import property_names, write_ply
from clm.formats.rows import INFINITE_LOGIT
from tests.conftest import scene_path
from tests.formats.whole import read_all


def random_table(count: int, names: list[str], types: list[str] | None = None, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = np.empty(count, [(name, kind) for name, kind in zip(names, types or ["<f4"] * len(names), strict=True)])
    for name in names:
        table[name] = rng.standard_normal(count) * 20
    return table


def save(path: Path, table: np.ndarray, **options) -> Path:
    with open(path, "wb") as file:
        PlyData([PlyElement.describe(table, "vertex")], **options).write(file)
    return path


def check_rows(geometry: np.ndarray, colour: np.ndarray, table: np.ndarray, sh_degree: int) -> None:
    """Field by field, written out: the slow twin of the reader's column table."""
    as_f32 = {name: table[name].astype(np.float32) for name in table.dtype.names}
    expected = [as_f32[name] for name in ["x", "y", "z", "rot_0", "rot_1", "rot_2", "rot_3"]]
    expected += [as_f32[name] for name in ["scale_0", "scale_1", "scale_2", "opacity"]]
    np.testing.assert_array_equal(geometry[:, :11], np.stack(expected, axis=1))
    np.testing.assert_array_equal(geometry[:, 11], 0)
    np.testing.assert_array_equal(colour[:, :3], np.stack([as_f32[f"f_dc_{i}"] for i in range(3)], axis=1))
    per_channel = (0, 3, 8, 15)[sh_degree]
    shN = np.zeros((len(table), 15, 3), np.float32)
    for channel in range(3):
        for coefficient in range(per_channel):
            shN[:, coefficient, channel] = as_f32[f"f_rest_{channel * per_channel + coefficient}"]
    np.testing.assert_array_equal(colour[:, 3:], shN.reshape(len(table), 45))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sh_degree=st.integers(0, 3),
    order=st.sampled_from("<>"),
    normals=st.booleans(),
    extra=st.integers(0, 3),
    size=st.sampled_from([1, 7, 64, 5000]),
)
def test_any_order_of_properties_of_any_type_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    sh_degree: int,
    order: str,
    normals: bool,
    extra: int,
    size: int,
) -> None:
    rng = np.random.default_rng(seed)
    names = [name for name in property_names(sh_degree) if normals or name not in ("nx", "ny", "nz")]
    names += [f"extra_{i}" for i in range(extra)]
    names = [names[i] for i in rng.permutation(len(names))]
    kinds = np.array(["f4", "f4", "f8", "i2", "i4"])[rng.integers(0, 5, len(names))]
    kinds = ["f4" if name == "rot_0" else kind for name, kind in zip(names, kinds, strict=True)]
    table = random_table(50, names, [order + kind for kind in kinds], seed)
    path = save(tmp_path_factory.mktemp("any") / "a.ply", table, byte_order=order)
    rows = open_ply(path)
    assert (rows.count, rows.sh_degree) == (50, sh_degree)
    geometry, colour = read_all(path, size)
    check_rows(geometry, colour, table, sh_degree)


def test_ascii_reads_the_same(tmp_path: Path) -> None:
    table = random_table(30, property_names(1))
    path = save(tmp_path / "a.ply", table, text=True)
    assert path.read_bytes().startswith(b"ply\nformat ascii")
    assert open_ply(path).facts()["format"] == "ascii"
    geometry, colour = read_all(path, 7)
    check_rows(geometry, colour, PlyData.read(path)["vertex"].data, 1)
    np.testing.assert_allclose(geometry[:, 0], table["x"], rtol=1e-6)


def test_other_elements_around_the_vertices_are_stepped_over(tmp_path: Path) -> None:
    table = random_table(20, property_names(0))
    camera = np.zeros(3, [("f", "<f8"), ("n", "u1")])
    elements = [PlyElement.describe(camera, "camera"), PlyElement.describe(table, "vertex")]
    PlyData([*elements, PlyElement.describe(camera, "after")], byte_order="<").write(str(tmp_path / "a.ply"))
    check_rows(*read_all(tmp_path / "a.ply"), table, 0)


def edit_header(path: Path, change: Callable[[bytes], bytes]) -> Path:
    raw = path.read_bytes()
    end = raw.index(b"end_header\n") + len(b"end_header\n")
    path.write_bytes(change(raw[:end]) + raw[end:])
    return path


def test_crlf_headers_and_long_type_names_of_careless_writers_are_read(tmp_path: Path) -> None:
    table = random_table(20, property_names(2))
    path = edit_header(
        save(tmp_path / "a.ply", table), lambda h: h.replace(b" float ", b" float32 ").replace(b"\n", b"\r\n")
    )
    check_rows(*read_all(path), table, 2)


@pytest.mark.parametrize(
    ("comment", "antialiased"),
    [("SplatRenderMode: mip", True), ("SplatRenderMode: default", False), ("antialiased 1", True), ("mip", False)],
)
def test_the_render_mode_comment_decides_antialiased(tmp_path: Path, comment: str, antialiased: bool) -> None:
    path = save(tmp_path / "a.ply", random_table(2, property_names(0)), comments=["made by hand", comment])
    assert open_ply(path).antialiased is antialiased
    assert open_ply(path).facts()["comments"] == ["made by hand", comment]


def test_infinite_opacities_are_read_finite_and_broken_rows_left_out_with_a_message(tmp_path: Path) -> None:
    table = random_table(100, property_names(3))
    table["opacity"][[3, 50]] = np.inf, -np.inf
    table["x"][10] = np.nan
    table["f_rest_44"][99] = np.inf
    for i in range(4):
        table[f"rot_{i}"][20] = 0
    rows = open_ply(save(tmp_path / "a.ply", table))
    for _ in range(2):  # messages are those of one reading, not a sum
        geometry, colour = (np.concatenate(parts) for parts in zip(*rows.chunks(30), strict=True))
        assert rows.messages == [
            "2 of 100 opacities were infinite: read as logits of +-20.",
            "3 of 100 Gaussians were not finite or had no rotation: left out.",
        ]
    expected = np.delete(table, [10, 20, 99])
    expected["opacity"][np.isinf(expected["opacity"])] = INFINITE_LOGIT, -INFINITE_LOGIT
    check_rows(geometry, colour, expected, 3)


def test_doubles_beyond_float32_are_left_out_not_turned_into_infinity(tmp_path: Path) -> None:
    names = property_names(0)
    table = random_table(5, names, ["<f8"] * len(names))
    table["z"][2] = 1e300
    assert len(read_all(save(tmp_path / "a.ply", table))[0]) == 4


def test_summary_comes_from_the_header_alone(tmp_path: Path) -> None:
    table = random_table(9, [*property_names(1), "red", "confidence"])
    path = save(tmp_path / "a.ply", table)
    summary = open_ply(path).facts()
    assert (summary["gaussians"], summary["sh_degree"], summary["bytes"]) == (9, 1, path.stat().st_size)
    assert summary["format"] == "binary_little_endian" and summary["extra_properties"] == ["red", "confidence"]


def test_a_trained_splat_of_another_tool_is_read_and_written_back(tmp_path: Path) -> None:
    path = scene_path("ply/playbot_lod3.ply")
    rows = open_ply(path)
    assert (rows.count, rows.sh_degree, rows.antialiased) == (31_000, 2, False)
    geometry, colour = read_all(path)
    assert rows.messages == []
    check_rows(geometry, colour, PlyData.read(path)["vertex"].data, 2)
    assert write_ply(tmp_path / "b.ply", rows.chunks(4096), sh_degree=2) == 31_000
    again = read_all(tmp_path / "b.ply")
    np.testing.assert_array_equal(again[1], colour)
    np.testing.assert_array_equal(again[0][:, 7:], geometry[:, 7:])


def without(*names: str) -> list[str]:
    return [name for name in property_names(3) if name not in names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (without("opacity"), "not a Gaussian PLY: it has no property opacity"),
        (without("scale_2"), "no property scale_2"),
        (without("rot_0", "f_dc_1"), "no property rot_0, f_dc_1"),
        (["x", "y", "z", "red", "green", "blue"], "a mesh or a point cloud, not Gaussians"),
        (without("f_rest_44"), "has 44 f_rest properties"),
        (without(*(f"f_rest_{i}" for i in range(36))), "has 9 f_rest properties"),  # right number, wrong names
    ],
)
def test_a_file_that_lacks_properties_is_refused_by_name(tmp_path: Path, names: list[str], message: str) -> None:
    path = save(tmp_path / "a.ply", random_table(3, names))
    with pytest.raises(ClmError, match=message) as error:
        open_ply(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PLY file"),
        (b"\x89PNG\r\n", "is not a PLY file"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 3\n", "no complete PLY header"),
        (b"ply\nelement vertex 3\nproperty float x\nend_header\n", "no `format` line"),
        (b"ply\nformat ascii 1.0\nelement vertex -3\nend_header\n", "`element vertex -3`"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\nproperty half x\nend_header\n", "`property half x`"),
        (b"ply\nformat ascii 1.0\nelement face 3\nend_header\n", "has no `vertex` element"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n",
            "x is there twice",
        ),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n", "is a list"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement face 2\nproperty list uchar int i\nelement vertex 3\n"
            b"property float x\nend_header\n",
            "unknown length before its vertices",
        ),
    ],
)
def test_a_file_that_is_no_gaussian_ply_is_one_clear_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    with pytest.raises(ClmError, match=message) as error:
        open_ply(path)
    assert error.value.exit_code == 2 and str(path) in error.value.message and "\n" not in error.value.message


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClmError, match=r"No such file: .*nowhere\.ply"):
        open_ply(tmp_path / "nowhere.ply")
    with pytest.raises(ClmError, match="cannot be read"):
        open_ply(tmp_path)


def test_a_truncated_file_is_refused_when_opened_or_while_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ply", random_table(100, property_names(3)))
    rows, size = open_ply(path), path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size - 1000)
    with pytest.raises(ClmError, match="1000 bytes shorter than its 100 Gaussians need"):
        open_ply(path)
    with pytest.raises(ClmError, match="ends after 95 of 100"):
        list(rows.chunks(10))
    text = save(tmp_path / "b.ply", random_table(10, property_names(0)), text=True)
    text.write_bytes(text.read_bytes()[:-200])
    with pytest.raises(ClmError, match=r"b\.ply cannot be read"):
        list(open_ply(text).chunks())
