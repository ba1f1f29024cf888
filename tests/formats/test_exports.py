"""Every format that is written: what others' readers find in the file, field by field, and what ours reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clm.formats.options import Filters, Options
from clm.formats.registry import format_of, open_rows
from clm.formats.select import select
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS, SH0, SH_C0, SHN
from tests.formats.models import model_rows, written

ROWS = 1000  # no multiple of 256


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("source") / "model.ply", *model_rows(ROWS), antialiased=True)


def export(
    source: Path, out: Path, options: Options | None = None, filters: Filters | None = None, **more
) -> list[str]:
    """Writes `out` as the command does; returns what it warned of."""
    said: list[str] = []
    form, filters = format_of(out), filters or Filters()
    degree = min(form.most_sh, 3 if filters.sh is None else filters.sh)
    selection = select(
        open_rows(source), filters, form.order, sh_degree=degree, scratch=out.parent, warn=said.append, **more
    )
    form.write(out, selection, options or Options())
    return said


def in_order_of(theirs: np.ndarray, source: Path, within: float) -> tuple[np.ndarray, np.ndarray]:
    """Geometry and colour of the source's rows, each beside the row of `theirs` [n, 3] whose centre is within so many units."""
    geometry, colour = (np.concatenate(arrays) for arrays in zip(*open_rows(source).chunks(), strict=True))
    ours = geometry[:, MEANS].astype(np.float64)
    nearest = ((theirs[:, None].astype(np.float64) - ours[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert len(set(nearest.tolist())) == len(ours) == len(theirs), "every row is there once"
    assert np.abs(theirs - ours[nearest]).max() <= within
    return geometry[nearest], colour[nearest]


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """The largest angle in radians between rotations given as quaternions [n, 4] of any norm and sign."""
    one, other = (q / np.linalg.norm(q.astype(np.float64), axis=1, keepdims=True) for q in (one, other))
    return float(2 * np.arccos(np.minimum(1, np.abs((one * other).sum(axis=1)))).max())


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


# ---- what we read back ----


# centre (units of a model 20 across), log-scale, opacity, angle, colour of degree 0 as rgb, coefficients
TOLERANCES = {
    "model.ply": (0, 0, 1e-6, 1e-3, 0, 0),
    "model.glb": (0, 1e-6, 1e-6, 1e-3, 0, 0),
    "model.compressed.ply": (0.01, 0.0045, 0.0021, 0.006, 0.005, 1 / 64 + 1e-6),
    "model.splat": (0, 1e-6, 0.0021, 0.03, 0.0021, None),
    "model.spz": (1 / 8192 + 1e-6, 1 / 32 + 1e-6, 0.0021, 0.008, 0.0038, 8 / 128 + 1e-6),
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_field_comes_back_within_what_the_format_holds(source: Path, tmp_path: Path, name: str) -> None:
    said = export(source, tmp_path / name)
    assert not said
    rows = open_rows(tmp_path / name)
    assert rows.count == ROWS and rows.antialiased == (name != "model.splat")
    geometry, colour = (np.concatenate(arrays) for arrays in zip(*rows.chunks(300), strict=True))
    assert not rows.messages and len(geometry) == ROWS
    centre, scale, opacity, turn, rgb, sh = TOLERANCES[name]
    ours, colours = in_order_of(geometry[:, MEANS], source, centre)
    np.testing.assert_allclose(geometry[:, LOG_SCALES], ours[:, LOG_SCALES], atol=scale, rtol=0)
    np.testing.assert_allclose(
        sigmoid(geometry[:, LOGIT_OPACITIES]), sigmoid(ours[:, LOGIT_OPACITIES]), atol=opacity, rtol=0
    )
    assert angle(geometry[:, QUATS], ours[:, QUATS]) <= turn
    np.testing.assert_allclose(SH_C0 * colour[:, SH0], SH_C0 * colours[:, SH0], atol=rgb, rtol=0)
    if sh is None:
        assert rows.sh_degree == 0 and not colour[:, SHN].any()
    else:
        np.testing.assert_allclose(colour[:, SHN], colours[:, SHN], atol=sh, rtol=0)


def test_rows_can_be_read_from_the_middle(source: Path, tmp_path: Path) -> None:
    for name in TOLERANCES:
        export(source, tmp_path / name)
        rows = open_rows(tmp_path / name)
        whole = [np.concatenate(arrays) for arrays in zip(*rows.chunks(), strict=True)]
        piece = rows.read(301, 777)
        np.testing.assert_array_equal(piece.numbers, np.arange(301, 777))
        np.testing.assert_array_equal(piece.geometry, whole[0][301:777])
        np.testing.assert_array_equal(piece.colour, whole[1][301:777])
