"""A video appears whole or not at all, has every frame in order and in its colours, and needs no more memory when it is longer."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from clm.errors import ClmError, ResourceError
from clm.video import open_video, refuse_foreign_video


def frames(count: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Smooth, coloured, moving pictures."""
    y, x = np.mgrid[0:height, 0:width]
    for k in range(count):
        waves = [128 + 100 * np.sin((x + 2 * k) / 20), 128 + 100 * np.sin((y - k) / 15), np.full(x.shape, 40 + 4 * k)]
        yield np.stack(waves, axis=2).astype(np.uint8)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        names = {"src_colorspace": "ITU709", "src_color_range": "MPEG", "dst_color_range": "JPEG"}
        return [f.reformat(format="rgb24", **names).to_ndarray() for f in container.decode(video=0)]


def test_a_video_has_every_frame_in_order_and_in_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    with open_video(path, 97, 63, Fraction(24)) as add:  # odd: the last column and row come twice
        for frame in frames(30, 97, 63):
            add(frame)
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames, stream.average_rate) == (98, 64, 30, 24)
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1, "players that are told nothing guess the colours from the size"
    for ours, theirs in zip(frames(30, 97, 63), decoded(path), strict=True):
        difference = ours.astype(float) - theirs[:63, :97]
        assert np.abs(difference.mean(axis=(0, 1))).max() < 3 and np.sqrt((difference**2).mean()) < 6
    refuse_foreign_video(path)


def test_the_index_is_in_front_so_that_a_browser_plays_what_has_arrived(tmp_path: Path) -> None:
    with open_video(tmp_path / "a.mp4", 32, 32, Fraction(30)) as add:
        for frame in frames(3, 32, 32):
            add(frame)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), OSError(errno.ENOSPC, "full")])
def test_a_video_that_is_not_finished_leaves_nothing_and_the_one_before_stays(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.mp4"
    with open_video(path, 32, 32, Fraction(30)) as add:
        add(np.zeros((32, 32, 3), np.uint8))
    before = path.read_bytes()
    expected = ResourceError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), open_video(path, 32, 32, Fraction(30)) as add:
        for frame in frames(3, 32, 32):
            add(frame)
        raise error
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The encoder's own writes fail, as they do beyond a limit on file sizes."""
    script = """
import resource, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from clm.errors import ResourceError
from clm.video import open_video
rng = np.random.default_rng(0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    with open_video(Path(sys.argv[1]), 320, 240, Fraction(30)) as add:
        for k in range(40):
            add(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
except ResourceError as error:
    print(error)
"""
    words = [sys.executable, "-c", script, str(tmp_path / "a.mp4")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert ended.returncode == 0 and f"{tmp_path / 'a.mp4'} was not written" in ended.stdout, ended
    assert not list(tmp_path.iterdir())


def test_a_video_that_clm_did_not_write_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    refuse_foreign_video(path)
    path.write_bytes(b"somebody's")
    with pytest.raises(ClmError, match="is there already, and clm did not write it"):
        refuse_foreign_video(path)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(ClmError, match="is there already"):
        refuse_foreign_video(path)


def test_without_av_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(ClmError, match=r"written by the package av, which is not installed.* `pip install av`"),
        open_video(tmp_path / "a.mp4", 32, 32, Fraction(30)),
    ):
        pass
    assert not list(tmp_path.iterdir())
