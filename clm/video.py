"""Video out: an .mp4 that grows frame by frame and appears whole, or not at all.

PyAV (`av`, the extra `video`) encodes; it is imported when a video is begun. Memory holds the few frames that the encoder looks
ahead, however long the video is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from clm.errors import ClmError
from clm.files import atomic_write

_CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that this build of av has
_OPTIONS = {"libx264": {"crf": "18", "preset": "medium", "rc-lookahead": "16"}}
_MARK = "clm"  # comment of every video
_BT709, _LIMITED = (
    1,
    1,
)  # ffmpeg's numbers for the colours of HDTV (matrix, primaries, transfer) and its range of values


def load_av() -> Any:
    """The module av. Raises ClmError where it is not installed."""
    try:
        import av
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise ClmError(f"A video is written by the package av, which {why}.", "Run `pip install av`.") from None
    return av


def refuse_foreign_video(path: Path) -> None:
    """Raise ClmError where a file of this name is no video that `open_video` wrote."""
    if not path.exists():
        return
    av, ours = load_av(), False
    with suppress(OSError, ValueError, av.FFmpegError), av.open(str(path)) as container:
        ours = container.metadata.get("comment") == _MARK
    if not ours:
        raise ClmError(f"{path} is there already, and clm did not write it.", "Choose another name with -o.")


@contextmanager
def open_video(path: Path, width: int, height: int, rate: Fraction) -> Iterator[Callable[[np.ndarray], None]]:
    """A function to call with each frame [height, width, 3] u8. When the block ends, the video is at `path`; when it raises,
    nothing is. An odd width or height gets a last column or row twice: H.264's colours are of two by two pixels.

    Raises ClmError without av, ResourceError where storage fails."""
    av = load_av()
    with atomic_write(path) as file, av.open(
        file.name, "w", format="mp4", options={"movflags": "+faststart"}
    ) as container:  # fmt: skip
        container.metadata["comment"] = _MARK
        stream = _stream(av, container, width + width % 2, height + height % 2, rate)
        count = 0

        def add(frame: np.ndarray) -> None:
            nonlocal count
            picture = av.VideoFrame.from_ndarray(_even(frame), format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            picture.pts, count = count, count + 1
            container.mux(stream.encode(picture))

        yield add
        container.mux(stream.encode(None))  # what the encoder still holds


def _stream(av: Any, container: Any, width: int, height: int, rate: Fraction) -> Any:
    name = next((name for name in _CODECS if name in av.codecs_available), None)
    if name is None:
        raise ClmError(
            "This build of the package av has no encoder for .mp4.", "Run `pip install --force-reinstall av`."
        )
    stream = container.add_stream(name, rate=rate, options=_OPTIONS.get(name, {}))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    return stream


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)
