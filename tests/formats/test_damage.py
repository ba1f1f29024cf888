"""Files of every format that are cut short, changed or something else: one sentence, never a crash, never silently fewer rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clm.errors import ClmError
from clm.formats.registry import FORMATS, open_rows
from tests.formats.models import export, model_rows, written

ENDINGS = [f.ending for f in FORMATS if f.ending[0] == "."]  # the others are folders: test_sog, test_lod, test_split


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    source = written(folder / "source.ply", *model_rows(300))
    for ending in ENDINGS:
        export(source, folder / f"model{ending}")
    return folder


def read(path: Path) -> int:
    return sum(len(geometry) for geometry, _ in open_rows(path).chunks(100))


def test_a_splat_that_is_cut_between_rows_is_shorter_and_says_that_nobody_can_tell(files: Path, tmp_path: Path) -> None:
    whole, cut = files / "model.splat", tmp_path / "cut.splat"
    cut.write_bytes(whole.read_bytes()[:-64])
    assert open_rows(cut).count == open_rows(whole).count - 2
    assert "looks whole" in open_rows(cut).facts()["comments"][0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_cut_short_is_refused(files: Path, tmp_path: Path, ending: str) -> None:
    data, path = (files / f"model{ending}").read_bytes(), tmp_path / f"cut{ending}"
    for length in [
        0,
        1,
        3,
        15,
        19,
        40,
        len(data) // 3 + 1,
        len(data) // 2 + 1,
        len(data) - 33,
        len(data) - 5,
        len(data) - 1,
    ]:
        path.write_bytes(data[:length])
        with pytest.raises(ClmError) as error:
            read(path)
        assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_changed_bytes_are_one_sentence_or_other_rows(files: Path, tmp_path: Path, ending: str) -> None:
    data, path = (files / f"model{ending}").read_bytes(), tmp_path / f"changed{ending}"
    rng = np.random.default_rng(0)
    header = min(len(data), 1600)
    for k in range(40):
        changed = bytearray(data)
        at = rng.integers(header if k % 2 else len(data))
        changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert read(path) <= 100_000
        except ClmError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error) or path.name in str(error)


def test_a_changed_byte_inside_what_gzip_packed_is_found_by_its_checksum(files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "model.spz").read_bytes())
    data[-8] ^= 1
    (tmp_path / "a.spz").write_bytes(data)
    with pytest.raises(ClmError, match="damaged or cut short"):
        read(tmp_path / "a.spz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_another_format_under_a_name_is_told_or_refused(files: Path, tmp_path: Path, ending: str) -> None:
    for other in ENDINGS:
        path = tmp_path / f"model{ending}"
        path.write_bytes((files / f"model{other}").read_bytes()[:-1] + b"x" * (1 if ending != ".splat" else 2))
        if other.endswith(".ply"):
            assert read(path) == 300, "a PLY is known by its first line"
        elif other != ending:
            with pytest.raises(ClmError):
                read(path)


def test_a_glb_of_other_things_says_what_it_holds(files: Path, tmp_path: Path) -> None:
    data, path = (files / "model.glb").read_bytes(), tmp_path / "a.glb"
    for old, new, said in (
        (b'KHR_gaussian_splatting":{"kernel', b'KHR_gaussian_splattinh":{"kernel', "holds no Gaussians"),
        (b"splatting:OPACITY", b"splatting:OPACITX", "has no KHR_gaussian_splatting:OPACITY"),
        (b'"version":"2.0"', b'"version":"2.0"', ""),
        (b'"nodes":[{"mesh":0}]', b'"nodes":[{"matrix":0}]', "moved"),
    ):
        assert old in data
        changed = data.replace(old, new)
        if len(new) != len(old):
            length = int.from_bytes(data[12:16], "little") + len(new) - len(old)
            pad = -length % 4
            end = 20 + length
            changed = changed[:end] + b" " * pad + changed[end:]
            changed = changed[:12] + (length + pad).to_bytes(4, "little") + changed[16:]
        path.write_bytes(changed)
        if said in ("", "moved"):
            rows = open_rows(path)
            assert read(path) == 300 and bool(rows.notes) == (said == "moved")
        else:
            with pytest.raises(ClmError, match=said):
                read(path)
