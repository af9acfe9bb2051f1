"""Video files by PyAV: how many frames one has, and any of them by number, upright and as eight-bit RGB.

The rules, so that a frame number means the same frame everywhere:
- frames count from 0 in the order in which they are shown; those that cannot be decoded do not count;
- the rotation that a file states is applied; an alpha channel is laid over white, as for pictures;
- a frame of another size than the first is brought to the size of the first;
- only the first stream of moving pictures is read; the picture of a sound file's cover is none.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import get_worker_info

from vpeft.data.decoding import Limits, Stamp, UnreadableImage, first_bytes, known_formats
from vpeft.data.pixels import DEFAULT
from vpeft.errors import need_extra

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp"}
)
# Containers that are opened, by FFmpeg's names. Play lists are not among them: they name other files and addresses.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,asf,flv,mpeg,mpegts,ogg,nut"
# Bytes that are read at a time.
_BUFFER = 2**18
# Where more frames than these would be decoded in vain, a table of all frames to seek in pays off.
_NEAR = 48
# Two frames follow at another pace than the others by so much: the frame rate counts as variable.
_UNEVEN = 1.5
# Tables of frames that a process keeps; one of a minute has 30 kB.
_KEPT_TABLES = 512


class UnreadableClip(UnreadableImage):
    """A file is no video, holds no frame, or is damaged so that a frame is missing."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of the moving pictures in a file.

    Attributes:
        count: number of frames.
        size: (H, W) of a frame, upright.
        rate: frames for each second, on average; 0 where the file does not say.
        variable: whether frames follow each other at different times.
        rotation: by how many degrees against the clock a stored frame is turned, a multiple of 90.
        cut: what is missing at the end or in between, "" if nothing.
        exact: whether the packets name all frames, so that one can be sought by number.
    """

    count: int
    size: tuple[int, int]
    rate: float
    variable: bool = False
    rotation: int = 0
    cut: str = ""
    exact: bool = True


def is_video_name(name: str | PurePath) -> bool:
    """Whether a file of this name should be a video: a known suffix, and not a hidden file."""
    path = PurePath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


@contextmanager
def _opened(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    """The container and its stream of moving pictures; raises `UnreadableClip`, also for what FFmpeg says meanwhile."""
    av = need_extra("av", "video")
    start = first_bytes(file)
    try:
        with av.open(
            file, "r", metadata_errors="replace", buffer_size=_BUFFER, options={"format_whitelist": _CONTAINERS}
        ) as container:
            yield container, _stream(container)
    except UnreadableImage:
        raise
    except (av.error.FFmpegError, ValueError, OSError) as error:
        kind = _picture_kind(file)
        if kind is not None:
            raise UnreadableClip(f"it is a picture ({kind}), not a video") from error
        if not start:
            raise UnreadableClip("it is empty") from error
        raise UnreadableClip(f"it cannot be read as a video: {_said(error)}") from error


def _stream(container: Any) -> Any:
    for stream in container.streams.video:
        if not _is_cover(stream):
            if get_worker_info() is not None:
                stream.codec_context.thread_count = 1  # loading processes are many already
            return stream
    if container.streams.audio:
        raise UnreadableClip("it has sound and no pictures")
    raise UnreadableClip("it has no moving pictures, or its end, which lists them, is cut off")


def _is_cover(stream: Any) -> bool:
    disposition = stream.disposition
    return bool(disposition & type(disposition).attached_pic)


def _picture_kind(file: IO[bytes]) -> str | None:
    """The format of a picture that is no video; None for anything else."""
    try:
        file.seek(0)
        with Image.open(file, formats=known_formats()) as image:
            return image.format
    except Exception:  # whatever the bytes are, they are no picture
        return None


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def video_facts(file: IO[bytes], limits: Limits = DEFAULT, *, decode: bool = True) -> VideoFacts:
    """Look at a video.

    Args:
        file: the open file.
        limits: of the size of a frame.
        decode: decode every frame; otherwise only read the packets, which nearly always name all frames.

    Raises:
        UnreadableClip: it is no video or has no frame.
        UnreadableImage: a frame exceeds a limit.
    """
    with _opened(file) as (container, stream):
        context = stream.codec_context
        if context.width and context.height:
            limits.check(context.width, context.height, 3 * context.width * context.height)
        packets, shown, faults = list[int | None](), list[int | None](), 0
        first: Any = None
        stated = int(stream.frames or 0)
        for packet in _packets(container, stream):
            if isinstance(packet, Exception):
                faults += 1
                break
            if packet.size and not packet.is_discard:
                packets.append(packet.pts)
            faults += int(packet.is_corrupt)
            if decode or first is None:
                frames, fault = _decoded(packet)
                faults += fault
                shown += [frame.pts for frame in frames]
                first = first or next(iter(frames), None)
        if first is None:
            raise UnreadableClip("it holds no frame that can be decoded" if packets else "it holds no frame")
        numbers = [pts for pts in packets if pts is not None]
        exact = len(set(numbers)) == len(packets) and container.format.name != "gif"
        if decode:
            exact = exact and sorted(numbers) == shown
            numbers = [pts for pts in shown if pts is not None]
        count = len(shown) if decode else len(packets)
        turn = _turn(first)
        height, width = (first.width, first.height) if turn % 180 else (first.height, first.width)
        limits.check(width, height, 3 * width * height)
        steps = np.diff(np.sort(np.asarray(numbers, dtype=np.int64)))
        uneven = bool(len(steps) > 1 and steps.max() > _UNEVEN * max(1, float(np.median(steps))))
        rate = float(stream.average_rate or 0)
        cut = _cut(stated, count, faults, container, stream, numbers)
        return VideoFacts(count, (height, width), rate, uneven, turn, cut, exact)


def _cut(stated: int, count: int, faults: int, container: Any, stream: Any, shown: Sequence[int]) -> str:
    """What is missing, in words; "" if the frames are as many as the file says."""
    if stated > count:
        return f"{count} of {stated} frames can be decoded"
    if faults:
        return f"{count} frames can be decoded, and others are damaged"
    if not stated and not container.streams.audio and container.duration and shown:
        told = container.duration / 1_000_000
        seen = float((max(shown) - min(shown)) * stream.time_base)
        if seen < 0.9 * told - 1:
            return f"{seen:.1f} of {told:.1f} seconds are there"
    return ""


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, and the last, empty one; an exception in place of packets that cannot be read."""
    av = need_extra("av", "video")
    found = container.demux(stream)
    while True:
        try:
            packet = next(found)
        except StopIteration:
            return
        except (av.error.FFmpegError, ValueError) as error:
            yield error
            return
        yield packet


def _decoded(packet: Any) -> tuple[list[Any], int]:
    """The frames of a packet, and 1 if it is damaged."""
    av = need_extra("av", "video")
    try:
        return list(packet.decode()), 0
    except av.error.EOFError:
        return [], 0
    except (av.error.FFmpegError, ValueError):
        return [], 1


def _turn(frame: Any) -> int:
    """Degrees against the clock, rounded to a multiple of 90."""
    return round(float(frame.rotation or 0) / 90) * 90 % 360


def read_frames(
    file: IO[bytes], numbers: Sequence[int], facts: VideoFacts, limits: Limits = DEFAULT, stamp: Stamp | None = None
) -> NDArray[np.uint8]:
    """Frames by number as RGB, uint8 (len(numbers), H, W, 3), in the order of `numbers`, each as often as it is named.

    Args:
        file: the open file.
        numbers: from 0 to `facts.count` - 1.
        facts: of `video_facts`.
        limits: of the memory of all frames together.
        stamp: of the file, under which its table of frames is kept.

    Raises:
        UnreadableClip: a frame cannot be decoded.
    """
    height, width = facts.size
    limits.check(width, height, 3 * width * height * len(numbers))
    frames = _Frames(numbers, facts)
    if facts.exact and stamp is not None and max(frames.left) + 1 - len(frames.left) > _NEAR:
        _by_seeking(file, frames, stamp)
    if frames.left:
        _from_the_start(file, frames)
    if frames.left:
        raise UnreadableClip(f"frame {min(frames.left)} of {facts.count} cannot be decoded")
    return frames.pixels


class _Frames:
    """Frames that are wanted, and those that have been decoded.

    Attributes:
        pixels: uint8 (N, H, W, 3), in the order in which they are wanted.
        left: the numbers of those that are missing.
    """

    def __init__(self, numbers: Sequence[int], facts: VideoFacts) -> None:
        self.facts = facts
        self.pixels = np.empty((len(numbers), *facts.size, 3), np.uint8)
        self._places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            self._places.setdefault(number, []).append(place)
        self.left = set(self._places)

    def take(self, number: int, frame: Any) -> None:
        """Keep a decoded frame, if it is wanted."""
        if number in self.left:
            first, *others = self._places[number]
            self.pixels[first] = _rgb(frame, self.facts)
            for place in others:
                self.pixels[place] = self.pixels[first]
            self.left.discard(number)


def _from_the_start(file: IO[bytes], wanted: _Frames) -> None:
    file.seek(0)
    number, last = 0, max(wanted.left)
    with _opened(file) as (container, stream):
        for packet in _packets(container, stream):
            if isinstance(packet, Exception):
                break
            for frame in _decoded(packet)[0]:
                wanted.take(number, frame)
                number += 1
            if number > last:
                break


@dataclass(frozen=True, slots=True)
class _Table:
    """The times of all frames in order, and the numbers of those at which decoding can begin."""

    shown: tuple[int, ...]
    keys: tuple[int, ...]

    def key_before(self, number: int) -> int:
        return self.keys[max(0, bisect.bisect_right(self.keys, number) - 1)]


class _Tables:
    """The tables of the files that were read last, at most `_KEPT_TABLES`."""

    def __init__(self) -> None:
        self._kept: dict[Stamp, _Table] = {}

    def of(self, file: IO[bytes], stamp: Stamp) -> _Table:
        found = self._kept.pop(stamp, None) or _table(file)
        self._kept[stamp] = found
        if len(self._kept) > _KEPT_TABLES:
            self._kept.pop(next(iter(self._kept)), None)
        return found


def _table(file: IO[bytes]) -> _Table:
    file.seek(0)
    times: dict[int, bool] = {}
    with _opened(file) as (container, stream):
        for packet in _packets(container, stream):
            if isinstance(packet, Exception):
                break
            if packet.size and not packet.is_discard and packet.pts is not None:
                times[packet.pts] = bool(packet.is_keyframe)
    shown = tuple(sorted(times))
    return _Table(shown, tuple(number for number, pts in enumerate(shown) if times[pts]) or (0,))


def _by_seeking(file: IO[bytes], wanted: _Frames, stamp: Stamp) -> None:
    """Decode from the nearest place at which that can begin. Frames that it misses are left to `_from_the_start`."""
    av = need_extra("av", "video")
    table = _tables.of(file, stamp)
    if len(table.shown) != wanted.facts.count:
        return
    places = {pts: number for number, pts in enumerate(table.shown)}
    file.seek(0)
    with _opened(file) as (container, stream):
        at = -1
        frames: Iterator[Any] = iter(())
        for number in sorted(wanted.left):
            key = table.key_before(number)
            try:
                if key > at:
                    container.seek(table.shown[key], stream=stream, backward=True)
                    frames = container.decode(stream)
                while at < number:
                    frame = next(frames)
                    at = places.get(frame.pts, at)
                    wanted.take(at, frame)
            except (StopIteration, av.error.FFmpegError):
                return


def _rgb(frame: Any, facts: VideoFacts) -> NDArray[np.uint8]:
    """A frame as RGB (H, W, 3), upright, of the size of the first."""
    height, width = facts.size if facts.rotation % 180 == 0 else facts.size[::-1]
    if (frame.height, frame.width) != (height, width):
        frame = frame.reformat(width=width, height=height)
    if any(part.is_alpha for part in frame.format.components) or frame.format.name == "pal8":
        seen = frame.to_ndarray(format="rgba").astype(np.uint16)
        opacity = seen[..., 3:]
        pixels = ((seen[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    made: NDArray[np.uint8] = np.rot90(pixels, facts.rotation // 90) if facts.rotation else pixels
    return made


_tables = _Tables()
