"""Little videos, written with PyAV, whose frames tell their numbers by their brightness."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

STEP = 8  # brightness from one frame to the next


def counted(count: int, height: int = 32, width: int = 48) -> list[NDArray[np.uint8]]:
    """Frames of one grey each, brighter from frame to frame, with a white corner at the top left."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), min(250, 16 + STEP * number), np.uint8)
        frame[: height // 4, : width // 4] = 255
        frames.append(frame)
    return frames


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number of a frame of `counted`, by the brightness of its middle."""
    middle = float(np.median(frame[frame.shape[0] // 2 - 2 : frame.shape[0] // 2 + 2, frame.shape[1] // 2 :]))
    return round((middle - 16) / STEP)


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    gop: int = 12,
    pixels: str = "yuv420p",
) -> Path:
    """Write frames at 25 a second, or at `times` in 25ths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = str(path)  # so that no two files are the same
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 25)
        if codec == "libx264":
            stream.options = {"crf": "10", "preset": "veryfast"}
        for number, pixels_of_frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels_of_frame.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels_of_frame, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file with a second of silence and no pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> None:
    """State in an mp4 file that it is to be shown turned clockwise by 90, 180 or 270 degrees."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (32 if data[at] else 20) + 16
    one = 1 << 16
    across, down = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    data[at : at + 36] = struct.pack(">9i", across, down, 0, -down, across, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
