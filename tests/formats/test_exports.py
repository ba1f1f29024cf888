"""Every format that is written: what others' readers find in the file, field by field, and what ours reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clm.formats.registry import open_rows
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS, SH0, SH_C0, SHN
from tests.formats.models import angle, export, in_order_of, model_rows, sigmoid, written

ROWS = 1000  # no multiple of 256


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model beside a file of it in every format, of which nothing had to be said."""
    source = written(tmp_path_factory.mktemp("source") / "source.ply", *model_rows(ROWS), antialiased=True)
    assert not [text for name in TOLERANCES for text in export(source, source.with_name(name))]
    return source


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
def test_every_field_comes_back_within_what_the_format_holds(source: Path, name: str) -> None:
    rows = open_rows(source.with_name(name))
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


def test_rows_can_be_read_from_the_middle(source: Path) -> None:
    for name in TOLERANCES:
        rows = open_rows(source.with_name(name))
        whole = [np.concatenate(arrays) for arrays in zip(*rows.chunks(), strict=True)]
        piece = rows.read(301, 777)
        np.testing.assert_array_equal(piece.numbers, np.arange(301, 777))
        np.testing.assert_array_equal(piece.geometry, whole[0][301:777])
        np.testing.assert_array_equal(piece.colour, whole[1][301:777])
