"""Clips that have not been decoded yet: of a video file, of a video in memory, or of a folder of frames."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.tv_tensors import Video

from vpeft.data.clips import torchcodec_frames
from vpeft.data.clips.clip_config import DecoderName
from vpeft.data.clips.video_file import UnreadableClip, VideoFacts, read_frames, video_facts
from vpeft.data.decoding import Limits, MissingImage, Stamp, UnreadableImage, opened_image
from vpeft.data.images import files_below, is_image_name, read, readable
from vpeft.data.pixels import DEFAULT, RGB, Reading
from vpeft.data.problems import DataError, Kind
from vpeft.errors import VpeftError

CheckDepth = Literal["decode", "header", "none"]
# A part of a video: first frame, and the one after the last (None: to the end); seconds where they are not whole.
Part = tuple[int | float, int | float | None]


class UnknownDecoder(VpeftError):
    """The decoder that is asked for cannot be used here."""


def usable_decoder(asked: DecoderName) -> Literal["pyav", "torchcodec"]:
    """The decoder that reads videos here; raises `UnknownDecoder` if torchcodec is asked for and does not load."""
    reason = torchcodec_frames.why_not() if asked != "pyav" else "PyAV is asked for"
    if asked == "torchcodec" and reason is not None:
        raise UnknownDecoder(f"clip.decoder = torchcodec: {reason}. Take pyav, or install FFmpeg's libraries.")
    return "pyav" if reason is not None else "torchcodec"


@dataclass(frozen=True)
class Clip:
    """A clip that is decoded when its frames are asked for.

    Attributes:
        name: for messages.
        count: number of frames.
        size: (H, W) of a frame.
        fetch: numbers and the decoder's name -> frames uint8 (n, H, W, 3); raises `UnreadableImage`.
        label: the class of the clip, where one is known.
        kept: all frames, uint8 (count, H, W, 3), where they are in memory.
    """

    name: str
    count: int
    size: tuple[int, int]
    fetch: Callable[[Sequence[int], DecoderName], NDArray[np.uint8]] = field(repr=False)
    label: str = ""
    kept: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return self.count * self.size[0] * self.size[1] * 3

    def frames(self, numbers: Sequence[int], decoder: DecoderName = "auto") -> Video:
        """Frames by number as a video, uint8 (len(numbers), 3, H, W).

        Raises:
            DataError: a frame cannot be read any more.
        """
        if self.kept is not None:
            pixels = self.kept[list(numbers)]
        else:
            try:
                pixels = self.fetch(numbers, decoder)
            except UnreadableImage as error:
                raise DataError(f"{self.name}: {error}. It was readable when the data set was opened.") from error
        return Video(torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2))

    def loaded(self) -> Self:
        """The clip with all its frames in memory."""
        return replace(self, kept=self.frames(range(self.count)).permute(0, 2, 3, 1).contiguous().numpy())


@dataclass(frozen=True, slots=True)
class ClipNote:
    """Something about a clip that is used all the same."""

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class CheckedClip:
    """What looking at a clip gave.

    Attributes:
        picture: the clip, which now knows its facts and the stamp of its file.
        content: the sha256 of its content, "" if it was not read.
        notes: what is worth saying though it is used.
        facts: of the whole video, where it is one.
    """

    picture: ClipPicture
    content: str
    notes: tuple[ClipNote, ...] = ()
    facts: VideoFacts | None = None


class ClipPicture(ABC):
    """Where the frames of a clip are; stands for `vpeft.data.items.Picture`. Instances go to data-loading workers."""

    __slots__ = ()

    @property
    @abstractmethod
    def file(self) -> Path | None:
        """The clip's own file or folder, where it has one."""

    @abstractmethod
    def checked(self, depth: CheckDepth, limits: Limits) -> CheckedClip:
        """Look at the clip as deep as asked.

        Raises:
            UnreadableImage: it is no clip, is damaged or exceeds a limit; `MissingImage` if it is not there.
        """

    @abstractmethod
    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Clip:
        """The clip, of which nothing is decoded yet; raises `UnreadableImage`."""

    def content(self) -> bytes:
        """What identifies the clip."""
        return self.checked("header", DEFAULT).content.encode()

    def numbers(self) -> NDArray[np.integer[Any]]:
        raise UnreadableClip("a clip is no mask")

    def stored(self) -> NDArray[Any]:
        raise UnreadableClip("a clip is no map")


@dataclass(frozen=True, slots=True)
class ClipFile(ClipPicture):
    """A video, or a part of one.

    Attributes:
        video: its file, or its bytes.
        part: which frames belong to the clip; None takes all.
        stamp: what the file was when it was checked; another file in its place is refused.
        facts: of the whole video, once it has been looked at.
    """

    video: Path | bytes
    part: Part | None = None
    stamp: Stamp | None = field(default=None, compare=False)
    facts: VideoFacts | None = field(default=None, compare=False)

    @property
    def file(self) -> Path | None:
        return self.video if isinstance(self.video, Path) else None

    def checked(self, depth: CheckDepth, limits: Limits) -> CheckedClip:
        with self._open(limits) as file:
            stamp = Stamp.of(file) if isinstance(self.video, Path) else None
            content = "" if depth == "none" else _sha256(file)
            file.seek(0)
            facts = video_facts(file, limits, decode=depth == "decode")
        first, last = _range(self.part, facts)
        notes = [ClipNote("cut_off", facts.cut)] if facts.cut else []
        if facts.variable:
            notes.append(ClipNote("uneven_rate", "frames are taken by number"))
        if content and self.part is not None:
            content = hashlib.sha256(f"{content} {first} {last}".encode()).hexdigest()
        return CheckedClip(replace(self, stamp=stamp, facts=facts), content, tuple(notes), facts)

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Clip:
        facts = self.facts
        if facts is None:
            with self._open(reading.limits) as file:
                facts = video_facts(file, reading.limits, decode=False)
        first, last = _range(self.part, facts)
        return Clip(
            readable(self.video) if isinstance(self.video, Path) else "a video in memory",
            last - first,
            facts.size,
            _OfVideo(replace(self, facts=facts), first, reading.limits),
        )

    @contextmanager
    def _open(self, limits: Limits) -> Iterator[IO[bytes]]:
        if isinstance(self.video, bytes):
            yield BytesIO(self.video)
            return
        with opened_image(self.video, limits, self.stamp) as file:
            yield file

    def pixels(self, numbers: Sequence[int], limits: Limits, asked: DecoderName) -> NDArray[np.uint8]:
        """Frames of the whole video by number, uint8 (n, H, W, 3)."""
        assert self.facts is not None
        with self._open(limits) as file:
            if usable_decoder(asked) == "torchcodec" and torchcodec_frames.suits(self.facts):
                return torchcodec_frames.read_frames(file, numbers, self.facts)
            return read_frames(file, numbers, self.facts, limits, self.stamp)


@dataclass(frozen=True, slots=True)
class _OfVideo:
    """Frames of a part of a video."""

    clip: ClipFile
    first: int
    limits: Limits

    def __call__(self, numbers: Sequence[int], decoder: DecoderName) -> NDArray[np.uint8]:
        return self.clip.pixels([self.first + number for number in numbers], self.limits, decoder)


@dataclass(frozen=True, slots=True)
class ClipFrames(ClipPicture):
    """A folder of frames, or a part of one: its images, sorted by the numbers in their names.

    Attributes:
        folder: of the frames.
        part: which frames belong to the clip; None takes all.
        facts: of the whole folder, once it has been looked at.
    """

    folder: Path
    part: Part | None = None
    facts: VideoFacts | None = field(default=None, compare=False)

    @property
    def file(self) -> Path | None:
        return self.folder

    def checked(self, depth: CheckDepth, limits: Limits) -> CheckedClip:
        names = self._names()
        size = self._size(names[0], limits)
        facts = VideoFacts(len(names), size, 0.0)
        first, last = _range(self.part, facts)
        digest = hashlib.sha256()
        for name in names[first:last] if depth != "none" else ():
            with opened_image(self.folder / name, limits) as file:
                digest.update(f"{_sha256(file)}\n".encode())
            if depth == "decode" and self._size(name, limits) != size:
                raise UnreadableClip(f"the frame {name} has another size than the first")
        return CheckedClip(replace(self, facts=facts), "" if depth == "none" else digest.hexdigest())

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Clip:
        names = self._names()
        facts = self.facts or VideoFacts(len(names), self._size(names[0], reading.limits), 0.0)
        first, last = _range(self.part, facts)
        return Clip(
            readable(self.folder),
            last - first,
            facts.size,
            _OfFolder(self.folder, tuple(names[first:last]), facts.size, reading.limits),
        )

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            raise MissingImage("No such folder")
        names = frames_in(self.folder)
        if not names:
            raise UnreadableClip("the folder holds no frame")
        return names

    def _size(self, name: str, limits: Limits) -> tuple[int, int]:
        height, width, _ = _frame(self.folder / name, limits).shape
        return height, width


@dataclass(frozen=True, slots=True)
class _OfFolder:
    """Frames of a folder by number."""

    folder: Path
    names: tuple[str, ...]
    size: tuple[int, int]
    limits: Limits

    def __call__(self, numbers: Sequence[int], decoder: DecoderName) -> NDArray[np.uint8]:
        height, width = self.size
        self.limits.check(width, height, 3 * width * height * len(numbers))
        found = {number: _frame(self.folder / self.names[number], self.limits) for number in set(numbers)}
        for number, pixels in found.items():
            if pixels.shape[:2] != self.size:
                raise UnreadableClip(f"the frame {self.names[number]} has another size than the first")
        return np.stack([found[number] for number in numbers])


@dataclass(frozen=True, slots=True, eq=False)
class ClipArray(ClipPicture):
    """Clip number `index` of an array uint8 (N, T, H, W, 3), which all the clips share."""

    array: NDArray[np.uint8]
    index: int

    @property
    def file(self) -> None:
        return None

    def checked(self, depth: CheckDepth, limits: Limits) -> CheckedClip:
        pixels = np.ascontiguousarray(self.array[self.index])
        return CheckedClip(self, hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest())

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Clip:
        pixels = self.array[self.index]
        return Clip(f"clips[{self.index}]", len(pixels), pixels.shape[1:3], _in_memory, kept=pixels)


@dataclass(frozen=True, slots=True, eq=False)
class ClipSample(ClipPicture):
    """The video `dataset[index][key]` of somebody else's data set: a dictionary of `bytes` and `path`.

    Attributes:
        dataset: a map-style data set.
        index: of the sample.
        key: of the video in it.
        facts: of the video, once it has been looked at.
    """

    dataset: Any
    index: int
    key: str
    facts: VideoFacts | None = None

    @property
    def file(self) -> None:
        return None

    def checked(self, depth: CheckDepth, limits: Limits) -> CheckedClip:
        seen = self._video().checked(depth, limits)
        return replace(seen, picture=replace(self, facts=seen.facts))

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Clip:
        return replace(self._video(), facts=self.facts).decode(content, reading)

    def _video(self) -> ClipFile:
        value = self.dataset[self.index][self.key]
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            return ClipFile(value["bytes"])
        if isinstance(value, Mapping) and value.get("path"):
            return ClipFile(Path(str(value["path"])))
        raise UnreadableClip(
            f"the data set gives {type(value).__name__} where the bytes or the path of a video are due"
        )


def _in_memory(numbers: Sequence[int], decoder: DecoderName) -> NDArray[np.uint8]:
    raise UnreadableClip("its frames are in memory")


def frames_in(folder: Path) -> list[str]:
    """The names of the images directly in a folder, sorted by the numbers in them, then by name."""
    names = [path.name for path in folder.iterdir() if is_image_name(path) and path.is_file()]
    return sorted(names, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name))


def frame_folders(root: Path) -> list[Path]:
    """The folders below `root`, or `root` itself, that hold images directly, sorted."""
    found = {path.parent for path in files_below(root).files if is_image_name(path)}
    return sorted(found)


def _frame(path: Path, limits: Limits) -> NDArray[np.uint8]:
    reading = Reading(3, "type", limits.max_pixels, limits.max_aspect, limits.max_mib)
    made: NDArray[np.uint8] = np.asarray(read(path, reading))
    return made


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto


def _range(part: Part | None, facts: VideoFacts) -> tuple[int, int]:
    """The first frame of a part, and the one after the last."""
    if part is None:
        return 0, facts.count
    found = []
    for edge, default in zip(part, (0, facts.count), strict=True):
        if edge is None:
            found.append(default)
        elif isinstance(edge, int):
            found.append(edge)
        elif facts.rate:
            found.append(round(edge * facts.rate))
        else:
            raise UnreadableClip("its part is given in seconds, and it does not state how many frames a second has")
    first, last = found
    if not 0 <= first < last or first >= facts.count:
        raise UnreadableClip(f"it has {facts.count} frames, and the part from {first} up to {last} holds none of them")
    return first, min(last, facts.count)


def as_tensor(clip: Clip) -> Tensor:
    """All frames of a clip, uint8 (3, T, H, W)."""
    frames: Tensor = clip.frames(range(clip.count)).as_subclass(Tensor)
    return frames.transpose(0, 1).contiguous()
