"""What `clm export` says before it works, and where it refuses to."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from clm.files import refuse_unwritable, storage_failure
from clm.formats.bounds import PASSING_BYTES, export_bytes
from clm.formats.registry import FORMATS, format_of
from clm.formats.split import Split
from clm.units import parse_bytes
from tests.demo_run import clm, contents
from tests.formats.models import model_rows, written


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model.ply", *model_rows(500))


def test_an_export_says_beforehand_how_much_memory_it_takes(model: Path, tmp_path: Path) -> None:
    said = clm("export", model, tmp_path / "out.spz").stderr.splitlines()
    found = re.fullmatch(r"500 Gaussians as \.spz: at most (.*iB) of memory", said[0])
    assert found is not None, said
    assert PASSING_BYTES < parse_bytes(found[1]) < PASSING_BYTES + (2 << 30), "the test's own libraries are counted"
    quiet = clm("export", model, tmp_path / "out.spz", "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_a_budget_that_is_too_small_for_a_format_is_a_warning_that_names_the_way_out(
    model: Path, tmp_path: Path
) -> None:
    said = clm("export", model, tmp_path / "out.sog", "--host-memory", "4GiB").stderr
    assert "warning" not in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clm.commands.export.export_bytes", lambda *sizes: 1 << 40)
        said = clm("export", model, tmp_path / "out.sog", "--host-memory", "4GiB").stderr
    assert "warning: That is more than --host-memory 4GiB: --max-per-file divides the model." in said


def test_the_bound_grows_as_the_parts_say() -> None:
    ply, sog, lod = (format_of(Path(name)) for name in ("a.ply", "a.sog", "lod-meta.json"))
    assert export_bytes(ply, 10**9, Split()) == PASSING_BYTES, "it passes through"
    assert export_bytes(sog, 2_000_000, Split(max_per_file=10**6)) < export_bytes(sog, 2_000_000, Split())
    for form in FORMATS:
        small, large = (export_bytes(form, rows, Split()) for rows in (10**6, 10**8))
        assert large - small <= 100 * 10**8, form.ending
    assert export_bytes(lod, 10**8, Split()) < 50 * 10**8


@pytest.mark.parametrize("name", ["out.ply", "out.spz", "out.splat", "web/lod-meta.json", "set/meta.json"])
def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refused(out: Path) -> str:
        before = contents(tmp_path)
        result = clm("export", model, out)
        assert result.returncode == 2 and result.stdout == "", result.stderr
        [line] = result.stderr.splitlines()
        assert line.startswith("error: ") and contents(tmp_path) == before
        return line

    (tmp_path / "file").write_text("not a folder")
    assert f"{tmp_path / 'file'} is no folder" in refused(tmp_path / "file" / name)
    (tmp_path / name).mkdir(parents=True)
    assert f"{tmp_path / name} is a folder" in refused(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert "is not open to you" in refused(tmp_path / "new" / name)


def test_what_is_forbidden_is_input_and_what_is_full_is_a_resource(tmp_path: Path) -> None:
    codes = {errno.EACCES: 2, errno.EROFS: 2, errno.EPERM: 2, errno.ENOSPC: 3, errno.EDQUOT: 3, errno.EFBIG: 3}
    for number, code in codes.items():
        failure = storage_failure(OSError(number, "no"), tmp_path / "a")
        assert failure is not None and failure.exit_code == code
    refuse_unwritable(tmp_path / "new" / "folder" / "a.ply")
    assert not list(tmp_path.iterdir())
