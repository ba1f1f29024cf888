"""Pictures that are written: ours may be written again, others are never overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clm.errors import ClmError
from clm.pictures import DepthScale, refuse_foreign_pictures, save_depth, save_png


def test_a_picture_that_clm_did_not_write_is_never_overwritten(tmp_path: Path) -> None:
    save_png(tmp_path / "ours.png", np.zeros((4, 5, 3), np.uint8))
    save_depth(tmp_path, "ours", np.ones((4, 5), np.float32), DepthScale.of(np.ones(1)))
    refuse_foreign_pictures([tmp_path / "ours.png", tmp_path / "ours.depth.png", tmp_path / "nothing.png"])
    Image.new("RGB", (5, 4)).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("a note")
    for name in ("photo.png", "text.png"):
        with pytest.raises(ClmError, match=rf"{name} is there already, and clm did not write it"):
            refuse_foreign_pictures([tmp_path / "ours.png", tmp_path / name])
