"""SOG out and in: what a decoder written from the specification, and other programs, find in what we write."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clm.errors import ClmError, ResourceError
from clm.formats import sog_write
from clm.formats.options import Options
from clm.formats.rows import Chunk
from clm.formats.select import SPACE
from clm.formats.sog_read import open_sog
from clm.formats.sog_write import write_sog, write_sog_folder
from tests.formats.made import made_rows, selection, whole
from tests.formats.splat_transform import read_by_splat_transform

COUNT = 3000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Chunk]:
    """A file, and its rows in the order in which they were written."""
    folder = tmp_path_factory.mktemp("sog")
    rows = selection(folder, made_rows(COUNT), SPACE)
    assert write_sog(folder / "made.sog", rows, Options()) == COUNT
    return folder / "made.sog", whole(rows.chunks())


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Fields of a SOG, by its specification and nothing of ours."""
    archive = zipfile.ZipFile(path)
    meta = json.loads(archive.read("meta.json"))

    def pixels(part: str, k: int = 0) -> np.ndarray:
        image = Image.open(io.BytesIO(archive.read(meta[part]["files"][k])))
        assert image.format == "WEBP" and b"VP8L" in archive.read(meta[part]["files"][k])[:60]  # lossless
        return np.asarray(image.convert("RGBA")).reshape(-1, 4).astype(np.int64)

    n = meta["count"]
    low, high = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    q = (pixels("means")[:n, :3] + 256 * pixels("means", 1)[:n, :3]) / 65535
    logs = low * (1 - q) + high * q
    out = {"means": np.sign(logs) * (np.exp(np.abs(logs)) - 1)}
    packed = pixels("quats")[:n]
    three = (packed[:, :3] / 255 - 0.5) * 2 / np.sqrt(2)
    quats = np.zeros((n, 4))
    for row, (mode, kept) in enumerate(zip(packed[:, 3] - 252, three, strict=True)):
        quats[row] = np.insert(kept, mode, np.sqrt(max(0, 1 - (kept**2).sum())))
    out["quats"] = quats
    out["scales"] = np.array(meta["scales"]["codebook"])[pixels("scales")[:n, :3]]
    out["sh0"] = np.array(meta["sh0"]["codebook"])[pixels("sh0")[:n, :3]]
    out["alpha"] = pixels("sh0")[:n, 3] / 255
    if "shN" in meta:
        labels = pixels("shN", 1)[:n, 0] + 256 * pixels("shN", 1)[:n, 1]
        each = {1: 3, 2: 8, 3: 15}[meta["shN"]["bands"]]
        centroids = pixels("shN")[:, :3].reshape(-1, 64 * each, 3)
        u, v = labels % 64 * each, labels // 64
        shN = [np.array(meta["shN"]["codebook"])[centroids[v, u + c]] for c in range(each)]
        out["shN"] = np.stack(shN, axis=1)
        assert labels.max() < meta["shN"]["count"]
    return out


def alphas(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_a_decoder_by_the_specification_finds_the_rows_within_the_steps_of_the_format(
    written: tuple[Path, Chunk],
) -> None:
    path, (geometry, colour) = written
    found = decoded(path)
    step = 2 * np.log(6) / 65535 * 6  # of 16 bits over ln(1 + 5) either way, at the box's corner
    assert np.abs(found["means"] - geometry[:, :3]).max() < 0.51 * step
    unit = geometry[:, 3:7] / np.linalg.norm(geometry[:, 3:7], axis=1, keepdims=True)
    turned = np.degrees(2 * np.arccos(np.minimum(1, np.abs((found["quats"] * unit).sum(axis=1)))))
    assert turned.max() < 1.1 and turned.mean() < 0.4  # half a step in three components, twice that in the fourth
    assert np.abs(found["scales"] - geometry[:, 7:10]).max() < 0.3
    assert np.sqrt(((found["scales"] - geometry[:, 7:10]) ** 2).mean()) < 0.02
    assert np.abs(found["sh0"] - colour[:, :3]).max() < 0.3
    assert np.sqrt(((found["sh0"] - colour[:, :3]) ** 2).mean()) < 0.015
    assert np.abs(found["alpha"] - alphas(geometry[:, 10])).max() <= 0.5 / 255 + 1e-6
    rest = colour[:, 3:].reshape(COUNT, 15, 3)
    assert np.sqrt(((found["shN"] - rest) ** 2).mean()) < 0.7 * np.sqrt((rest**2).mean())


def test_our_reader_finds_what_the_specification_says(written: tuple[Path, Chunk]) -> None:
    path, _ = written
    found, rows = decoded(path), open_sog(path)
    assert (rows.count, rows.sh_degree, rows.antialiased, rows.kind) == (COUNT, 3, False, "SOG")
    geometry, colour = whole(rows.chunks(700))
    np.testing.assert_allclose(geometry[:, :3], found["means"], atol=1e-6)
    np.testing.assert_allclose(geometry[:, 3:7], found["quats"], atol=1e-6)
    np.testing.assert_allclose(geometry[:, 7:10], found["scales"], rtol=1e-6)
    np.testing.assert_allclose(alphas(geometry[:, 10]), found["alpha"], atol=2e-6)
    np.testing.assert_allclose(colour[:, :3], found["sh0"], rtol=1e-6)
    np.testing.assert_allclose(colour[:, 3:].reshape(COUNT, 15, 3), found["shN"], rtol=1e-6)
    middle = rows.read(1000, 1010)
    np.testing.assert_array_equal(middle.geometry, geometry[1000:1010])
    assert rows.facts()["bytes"] == path.stat().st_size and not rows.messages


def compare(theirs: Chunk, path: Path) -> None:
    """Rows that another program read against ours, but for opacities of 0 and 255, which everybody reads as they like. (gsply
    0.4.6 agrees, too; it takes half a minute to be compiled.)"""
    geometry, colour = whole(open_sog(path).chunks())
    np.testing.assert_allclose(theirs[0][:, :3], geometry[:, :3], atol=2e-5)
    np.testing.assert_allclose(theirs[0][:, 3:7], geometry[:, 3:7], atol=1e-6)
    np.testing.assert_allclose(theirs[0][:, 7:10], geometry[:, 7:10], rtol=1e-6)
    np.testing.assert_allclose(alphas(theirs[0][:, 10]), alphas(geometry[:, 10]), atol=1e-5)
    np.testing.assert_allclose(theirs[1], colour, rtol=1e-6, atol=1e-7)


def test_splat_transform_reads_every_field_as_we_do(written: tuple[Path, Chunk], tmp_path: Path) -> None:
    compare(read_by_splat_transform(written[0], tmp_path), written[0])


def test_a_folder_holds_the_files_of_the_archive_and_replaces_an_older_one(
    written: tuple[Path, Chunk], tmp_path: Path
) -> None:
    rows = selection(tmp_path, made_rows(COUNT), SPACE)
    path = tmp_path / "folder" / "meta.json"
    for _ in range(2):
        assert write_sog_folder(path, rows, Options()) == COUNT
    archive = zipfile.ZipFile(written[0])
    assert sorted(archive.namelist()) == sorted(file.name for file in path.parent.iterdir())
    for name in archive.namelist():
        assert archive.read(name) == (path.parent / name).read_bytes()
    assert open_sog(path).facts()["bytes"] == sum(file.stat().st_size for file in path.parent.iterdir())
    (path.parent / "mine.txt").write_text("precious")
    with pytest.raises(ClmError, match=r"mine\.txt would be lost"):
        write_sog_folder(path, rows, Options())
    assert not [file for file in tmp_path.rglob("*.tmp")]


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_lower_degrees_have_fewer_coefficients(tmp_path: Path, degree: int) -> None:
    rows = selection(tmp_path, made_rows(500), SPACE, sh_degree=degree)
    write_sog(tmp_path / "made.sog", rows, Options())
    read = open_sog(tmp_path / "made.sog")
    assert read.sh_degree == degree
    _, colour = whole(read.chunks())
    kept = 3 * (degree + 1) ** 2
    assert not colour[:, kept:].any() and (degree == 0 or colour[:, 3:kept].any())


@pytest.mark.parametrize("count", [1, 2, 17])
def test_a_few_rows_all_alike_come_back(tmp_path: Path, count: int) -> None:
    geometry, colour = made_rows(1)
    rows = np.repeat(geometry, count, axis=0), np.repeat(colour, count, axis=0)
    write_sog(tmp_path / "made.sog", selection(tmp_path, rows, SPACE), Options())
    found, colours = whole(open_sog(tmp_path / "made.sog").chunks())
    np.testing.assert_allclose(found[:, :3], rows[0][:, :3], rtol=1e-6)
    np.testing.assert_allclose(found[:, 7:10], rows[0][:, 7:10], atol=1e-4)
    np.testing.assert_allclose(colours, rows[1], atol=1e-3)


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = selection(tmp_path, made_rows(500), SPACE)

    def full(image: np.ndarray) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sog_write, "_webp", full)
    for path, write in ((tmp_path / "made.sog", write_sog), (tmp_path / "made" / "meta.json", write_sog_folder)):
        with pytest.raises(ResourceError, match="disk is full"):
            write(path, rows, Options())
    assert [file.name for file in tmp_path.iterdir()] == ["made.ply"]


def test_more_rows_than_an_image_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sog_write, "MOST_ROWS", 100)
    with pytest.raises(ClmError, match="would hold 500 Gaussians; a SOG holds 100"):
        write_sog(tmp_path / "made.sog", selection(tmp_path, made_rows(500), SPACE), Options())


def rewritten(path: Path, out: Path, change: dict[str, bytes | None]) -> Path:
    """A copy of an archive with some files changed, or left out."""
    source = zipfile.ZipFile(path)
    with zipfile.ZipFile(out, "w") as archive:
        for name in source.namelist():
            data = change.get(name, source.read(name))
            if data is not None:
                archive.writestr(name, data)
    return out


def altered(path: Path, out: Path, *keys: str, value: object) -> Path:
    meta = json.loads(zipfile.ZipFile(path).read("meta.json"))
    part = meta
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return rewritten(path, out, {"meta.json": json.dumps(meta).encode()})


def test_damaged_files_end_in_one_sentence(written: tuple[Path, Chunk], tmp_path: Path) -> None:
    path, bad = written[0], tmp_path / "bad.sog"
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "WEBP", lossless=True)
    cases = [
        (lambda: bad.write_bytes(path.read_bytes()[:-500]), "is no SOG"),
        (lambda: bad.write_bytes(b"not a zip"), "is no SOG"),
        (lambda: rewritten(path, bad, {"meta.json": b"{"}), "meta.json cannot be read"),
        (lambda: rewritten(path, bad, {"meta.json": b"[]"}), "version None"),
        (lambda: rewritten(path, bad, {"meta.json": None}), "there is no meta.json"),
        (lambda: rewritten(path, bad, {"quats.webp": None}), "quats.webp cannot be decoded"),
        (lambda: rewritten(path, bad, {"quats.webp": b"x" * 99}), "quats.webp cannot be decoded"),
        (lambda: rewritten(path, bad, {"sh0.webp": small.getvalue()}), "sh0.webp has 64 of 3,000 pixels"),
        (lambda: rewritten(path, bad, {"shN_centroids.webp": small.getvalue()}), "palette image has 8 x 8"),
        (lambda: altered(path, bad, "version", value=3), "version 3; version 2 is read"),
        (lambda: altered(path, bad, "count", value="many"), "no valid `count`"),
        (lambda: altered(path, bad, "scales", "codebook", value=[1.0]), "no valid `scales.codebook`"),
        (lambda: altered(path, bad, "means", "mins", value=[0, 0]), "no valid `means.mins`"),
        (lambda: altered(path, bad, "means", "files", value=["means_l.webp"]), "no valid `means.files`"),
        (lambda: altered(path, bad, "shN", "bands", value=4), "no valid `shN.bands`"),
        (lambda: altered(path, bad, "shN", "count", value=0), "no valid `shN.count`"),
    ]
    for make, message in cases:
        make()
        with pytest.raises(ClmError) as caught:
            list(open_sog(bad).chunks())
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_mean_nothing_are_left_out_and_said(written: tuple[Path, Chunk], tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(zipfile.ZipFile(written[0]).read("quats.webp")))
    pixels = np.asarray(image).copy()
    pixels[0, :5, 3] = 100  # no mode
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, exact=True)
    rows = open_sog(rewritten(written[0], tmp_path / "bad.sog", {"quats.webp": out.getvalue()}))
    assert len(whole(rows.chunks())[0]) == COUNT - 5
    assert rows.messages == [f"5 of {COUNT} Gaussians were not finite or had no rotation: left out."]
