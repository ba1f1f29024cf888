"""Which rows are written and in which order; what does not fit into a format is refused or said; and how much memory it takes."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import clm.formats.ordered
import clm.formats.select
from clm.errors import ClmError
from clm.formats.options import Filters, Options, parse_box
from clm.formats.registry import FORMATS, check_options, format_of, open_rows
from clm.formats.rows import in_multiples
from clm.formats.select import FILE, IMPORTANCE, SPACE, Selection, importance, select
from clm.formats.spz import SpzRows, sh_bits
from clm.store.layout import LOGIT_OPACITIES, MEANS, QUATS
from tests.formats.models import angle, export, model_rows, sigmoid, written

ROWS = 3000
ENDINGS = [f.ending for f in FORMATS if f.ending[0] == "."]  # the others are folders: test_sog, test_lod, test_split


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("source") / "model.ply", *model_rows(ROWS))


def selected(path: Path, order: str, scratch: Path, sh: int = 3, **filters) -> Selection:
    return select(open_rows(path), Filters(**filters), order, sh_degree=sh, scratch=scratch, bucket_rows=700)


def whole(selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    geometry, colour = zip(*((g.copy(), c.copy()) for g, c in selection.chunks()), strict=True)
    return np.concatenate(geometry), np.concatenate(colour)


@pytest.mark.parametrize("order", [FILE, SPACE, IMPORTANCE])
def test_crop_opacity_and_degree_leave_the_rows_that_were_asked_for(source: Path, tmp_path: Path, order: str) -> None:
    box = parse_box("2,-1,9,-2,3,-9")
    assert box == (-2, -1, -9, 2, 3, 9)
    selection = selected(source, order, tmp_path, sh=1, crop=box, min_opacity=0.4)
    geometry, colour = whole(selection)
    all_rows, colours = whole(selected(source, FILE, tmp_path))
    means = all_rows[:, MEANS]
    wanted = ((means >= box[:3]) & (means <= box[3:])).all(axis=1) & (sigmoid(all_rows[:, LOGIT_OPACITIES]) >= 0.4)
    assert 0 < wanted.sum() == selection.count == len(geometry) < ROWS
    place, theirs = (np.lexsort(rows[:, MEANS].T) for rows in (geometry, all_rows[wanted]))
    np.testing.assert_array_equal(geometry[place], all_rows[wanted][theirs])
    np.testing.assert_array_equal(colour[place][:, :12], colours[wanted][theirs][:, :12])
    assert not colour[:, 12:].any() and selection.sh_degree == 1
    np.testing.assert_array_equal(selection.low, geometry[:, MEANS].min(axis=0))
    np.testing.assert_array_equal(selection.high, geometry[:, MEANS].max(axis=0))
    assert not list(tmp_path.iterdir())


def test_importance_falls_and_neighbours_on_the_curve_are_neighbours_in_space(source: Path, tmp_path: Path) -> None:
    falling = importance(whole(selected(source, IMPORTANCE, tmp_path))[0])
    assert (np.diff(falling) <= 0).all()
    means = [whole(selected(source, order, tmp_path))[0][:, MEANS] for order in (FILE, SPACE)]
    steps = [np.linalg.norm(np.diff(centres, axis=0), axis=1).mean() for centres in means]
    assert steps[1] < 0.25 * steps[0]


def test_a_few_rows_far_away_do_not_spoil_the_curve_for_the_others(tmp_path: Path) -> None:
    geometry, colour = model_rows(ROWS)
    geometry[::500, :3] *= 1e5
    near = [whole(selected(written(tmp_path / "far.ply", geometry, colour), SPACE, tmp_path))[0][:, MEANS]]
    near.append(whole(selected(written(tmp_path / "near.ply", *model_rows(ROWS)), SPACE, tmp_path))[0][:, MEANS])
    far, usual = (np.median(np.linalg.norm(np.diff(means, axis=0), axis=1)) for means in near)
    assert far < 1.5 * usual


def test_rows_on_disk_and_parts_of_them_are_the_rows_in_order(source: Path, tmp_path: Path) -> None:
    selection = selected(source, SPACE, tmp_path)
    geometry, colour = whole(selection)
    with selection.on_disk() as rows:
        assert not list(tmp_path.iterdir()), "it has no name"
        piece = rows.read(1000, 1700)
        np.testing.assert_array_equal(piece.geometry, geometry[1000:1700])
        np.testing.assert_array_equal(piece.colour, colour[1000:1700])
        at = np.array([7, 5, 2999, 1234], np.int32)
        for part in (selection.part(at, rows), selection.part(at)):
            assert part.count == 4
            np.testing.assert_array_equal(whole(part)[0], geometry[at])
            np.testing.assert_array_equal(part.low, geometry[at][:, MEANS].min(axis=0))


def test_chunks_are_cut_into_multiples_without_losing_a_row() -> None:
    geometry, colour = model_rows(1000)
    cuts = [0, 1, 100, 355, 356, 900, 1000]
    pieces = list(in_multiples(((geometry[a:b], colour[a:b]) for a, b in itertools.pairwise(cuts)), 256))
    assert [len(g) % 256 for g, _ in pieces[:-1]] == [0] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate([g for g, _ in pieces]), geometry)


# ---- what is wrong ----


def test_values_that_are_not_finite_are_left_out_or_refuse_the_model(tmp_path: Path) -> None:
    geometry, colour = model_rows(100)
    path = written(tmp_path / "model.ply", geometry, colour)
    data = bytearray(path.read_bytes())
    data[-248:-244] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    for ending in ENDINGS:
        out = tmp_path / f"out{ending}"
        export(path, out)
        assert open_rows(out).count == 99
        out.unlink()
        with pytest.raises(ClmError, match=r"1 values that are not finite or .*--nan drop"):
            export(path, out, filters=Filters(nan="refuse"))
        assert not out.exists()
    with pytest.raises(ClmError, match="--nan is `zero`"):
        Filters(nan="zero")


@pytest.mark.parametrize("ending", ENDINGS)
def test_filters_that_leave_nothing_write_nothing(source: Path, tmp_path: Path, ending: str) -> None:
    with pytest.raises(ClmError, match=r"No Gaussian of .*: --crop and --min-opacity left out all 3,000"):
        export(source, tmp_path / f"out{ending}", filters=Filters(crop=(90, 90, 90, 91, 91, 91), min_opacity=0.1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d,e,f", "", "1,2,3,4,5,nan", "1,2,3,4,5,6,7"])
def test_a_box_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ClmError, match=r"--crop is `.*two corners"):
        parse_box(text)


def test_what_spz_has_no_place_for_is_refused_or_said(tmp_path: Path) -> None:
    geometry, colour = model_rows(100)
    geometry[3, 7:9], geometry[4, 7], colour[5, 9], colour[6, 0] = (-12, -10.5), 7, 1.5, -4
    said = export(written(tmp_path / "model.ply", geometry, colour), tmp_path / "out.spz")
    assert len(said) == 1 and said[0].startswith("Clipped to what .spz holds: ")
    for part in (
        "2 log-scales below -10",
        "1 log-scales above 5.9",
        "1 colours beyond what",
        "1 coefficients beyond -1 and 1",
    ):
        assert part in said[0]
    back = open_rows(tmp_path / "out.spz").read(0, 100).geometry
    assert (back[:, 7:10] == -10).sum() == 2 and back[:, 7:10].max() == 255 / 16 - 10
    (tmp_path / "out.spz").unlink()
    for value, fits in ((2047.9997, True), (2048.0, False), (-2048.0, True), (-2048.1, False)):
        geometry[8, 1] = value
        path = written(tmp_path / "model.ply", geometry, colour)
        if fits:
            export(path, tmp_path / "far.spz")
            assert np.abs(open_rows(tmp_path / "far.spz").read(0, 100).geometry[:, 1] - value).min() < 2e-4
        else:
            with pytest.raises(ClmError, match=r"\.spz holds centres from -2048 to 2048, and these reach .*--crop"):
                export(path, tmp_path / "out.spz")
    assert not (tmp_path / "out.spz").exists()


def test_coefficients_and_sizes_that_other_formats_have_no_place_for_are_counted(tmp_path: Path) -> None:
    geometry, colour = model_rows(300)
    geometry[0, 8], colour[1, 20] = -25, 4.5
    path = written(tmp_path / "model.ply", geometry, colour)
    [said] = export(path, tmp_path / "out.compressed.ply")
    assert "1 log-scales beyond -20 and 20" in said and "1 coefficients beyond -4 and 4" in said
    geometry[0, 8] = -95
    path = written(tmp_path / "model.ply", geometry, colour)
    for name in ("out.splat", "out.glb"):
        assert export(path, tmp_path / name) == [f"Clipped to what {name[3:]} holds: 1 log-scales beyond -87 and 88."]
        assert open_rows(tmp_path / name).read(0, 300).geometry.shape == (300, 12)


def test_a_glb_that_would_be_larger_than_the_format_is_refused_before_it_is_begun(source: Path, tmp_path: Path) -> None:
    selection = selected(source, FILE, tmp_path)
    selection._known = type(selection.facts)(20_000_000, selection.low, selection.high)
    del selection.facts
    with pytest.raises(ClmError, match=r"would take 4\.8 GB, and a \.glb ends at 4\.3 GB"):
        format_of(Path("a.glb")).write(tmp_path / "a.glb", selection, Options())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_row_and_a_degree_of_zero_are_whole_files(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / "model.ply", *model_rows(1))
    export(path, tmp_path / f"out{ending}", filters=Filters(sh=0))
    rows = open_rows(tmp_path / f"out{ending}")
    [(geometry, colour)] = rows.chunks()
    assert rows.count == 1 and rows.sh_degree == 0 and not colour[:, 3:].any()
    np.testing.assert_allclose(geometry[:, MEANS], model_rows(1)[0][:, MEANS], atol=2e-4)


def test_names_of_formats_and_options_that_a_format_does_not_take(tmp_path: Path) -> None:
    assert format_of(Path("A.Compressed.PLY")).ending == ".compressed.ply" and format_of(Path("a.ply")).ending == ".ply"
    slips = {
        "a.splt": "Did you mean .splat?",
        "a.sps": "Did you mean .sp",
        "a": "no ending",
        ".ply": "no ending",
        "a.compresed.ply": "Did you mean .compressed.ply?",
    }
    for name, said in {**slips, "a.obj": "Formats: .ply"}.items():
        with pytest.raises(ClmError, match="cannot be a model") as error:
            format_of(Path(name))
        assert said in str(error.value)
    with pytest.raises(ClmError, match=r"\.ply takes no --sh-bits\. It is for \.spz"):
        check_options(format_of(Path("a.ply")), Filters(), Options(sh_bits="8"))
    with pytest.raises(ClmError, match=r"\.splat holds spherical harmonics up to degree 0"):
        check_options(format_of(Path("a.splat")), Filters(sh=2), Options())
    assert sh_bits("8") == (8, 8) and sh_bits("6, 3") == (6, 3) and sh_bits(None) == (6, 5)
    for text in ("9", "0", "a", "1,2,3", ""):
        with pytest.raises(ClmError, match="--sh-bits is"):
            sh_bits(text)


def test_an_spz_of_an_older_writer_is_turned_back_where_its_axes_are_named(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "a.spz", Options(sh_bits="8"))
    plain, turned = open_rows(tmp_path / "a.spz"), open_rows(tmp_path / "a.spz")
    assert isinstance(turned, SpzRows)
    turned.axes = "rub"
    [(geometry, colour)], [(other, colours)] = plain.chunks(), turned.chunks()
    np.testing.assert_array_equal(other[:, MEANS], geometry[:, MEANS] * np.array([1, -1, -1], np.float32))
    half_turn = np.column_stack(
        [-geometry[:, 4], geometry[:, 3], -geometry[:, 6], geometry[:, 5]]
    )  # (0, 1, 0, 0) times wxyz
    assert angle(other[:, QUATS], half_turn) < 1e-3
    np.testing.assert_array_equal(
        colours[:, 3:12].reshape(-1, 3, 3), colour[:, 3:12].reshape(-1, 3, 3) * [[-1], [-1], [1]]
    )


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != ".sog"])  # its images are held whole
def test_writing_and_reading_take_the_memory_of_a_few_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    rows, chunk = 40_000, 2048
    path = written(tmp_path / "model.ply", *model_rows(rows))
    for module in (clm.formats.select, clm.formats.ordered):
        monkeypatch.setattr(module, "CHUNK_ROWS", chunk)
    tracemalloc.start()
    try:
        export(path, tmp_path / f"out{ending}", bucket_rows=2 * chunk)
        write_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(len(geometry) for geometry, _ in open_rows(tmp_path / f"out{ending}").chunks(chunk)) == rows
        read_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert write_peak < 32 * rows + 12 * chunk * 240 + (2 << 20), f"the model has {rows * 240} bytes"
    assert read_peak < 5 * chunk * 240 + (1 << 20)
