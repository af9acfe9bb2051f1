"""What an offline set of clips is, and how its clips are drawn, written as mp4 files, and checked.

The files keep every pixel as it was drawn (H.264 without loss, in RGB), so that a result does not depend on the version
of an encoder; what they are read with is what any video is read with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpeft.data.clips.clip import ClipFile, as_tensor
from vpeft.data.drawn_splits import random_of_split, read_digests, require_digest, require_packages
from vpeft.data.problems import DataError
from vpeft.errors import need_extra

SIDE = 64
FRAMES = 16
RATE = 8  # frames a second, so that a clip lasts two
VERSION = 1  # of a set that states no other
SEED = 20_261_103  # of the sets; one number, so that everybody has the same clips
SIZES = {"train": 480, "val": 240, "test": 480}
DIGESTS = Path(__file__).with_name("digests.json")
NAME = "pocket-video"


@dataclass(frozen=True)
class DrawnClips:
    """The clips of one split.

    Attributes:
        frames: uint8 (N, 16, 64, 64, 3), RGB.
        labels: int64 (N,), class numbers among `VideoSet.labels`.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class VideoSet:
    """One set: `draw(split, count, rng)` makes `count` clips; all else describes it.

    `draw` must be a pure function of its arguments and must use only `rng.random`, `rng.integers` and
    `rng.permutation`, whose streams do not depend on the version of NumPy.
    """

    name: str
    title: str
    description: str
    labels: tuple[str, ...]
    source: str
    licence: str
    draw: Callable[[str, int, np.random.Generator], DrawnClips] = field(repr=False)
    needs: tuple[str, ...] = ()  # import names of packages beyond vpeft's own dependencies
    # Raised when a pixel of a released set changes; results of two versions are not comparable.
    version: int = VERSION

    def folder(self, split: str) -> Path:
        """The folder of "train" (480), "val" (240) or "test" (480): CLASS/NUMBER.mp4.

        The first call draws the clips and writes the files below `$VPEFT_CACHE` or `~/.cache/vpeft`; the digest stored
        with the set is part of the folder's name.

        Raises:
            DataError: a package is missing, `split` is unknown, or the clips are not those of the digest.
        """
        if split not in SIZES:
            raise DataError(f"The set {NAME}/{self.name} has no split {split!r}; it has {', '.join(SIZES)}.")
        stored = stored_digests().get(self.name, {}).get(split)
        key = f"v{self.version}-{stored[:16]}" if stored is not None else "draft"
        path = _cache_folder() / NAME / f"{self.name}-{key}" / split
        if path.is_dir() and stored is not None:
            return path
        clips = self.generate(split)
        if stored is not None:
            require_digest(f"{NAME}/{self.name}", split, digest(clips), stored)
        _write_folder(path, clips, self.labels)
        return path

    def read(self, split: str) -> DrawnClips:
        """The clips of one split, decoded from their files; in the order in which they were drawn.

        Raises:
            DataError: as `folder`, or a file is damaged.
        """
        files = sorted(self.folder(split).glob("*/*.mp4"), key=lambda path: path.stem)
        frames = np.zeros((len(files), FRAMES, SIDE, SIDE, 3), np.uint8)
        for number, path in enumerate(files):
            clip = as_tensor(ClipFile(path).decode())
            if clip.shape != (3, FRAMES, SIDE, SIDE):
                raise DataError(f"{path} is no clip of {FRAMES} frames of {SIDE} x {SIDE}. Remove its folder.")
            frames[number] = clip.permute(1, 2, 3, 0).numpy()
        labels = np.array([self.labels.index(path.parent.name) for path in files], dtype=np.int64)
        return DrawnClips(frames, labels)

    def generate(self, split: str) -> DrawnClips:
        """Draw one split anew, past the files."""
        require_packages(self.needs, f"The set {NAME}/{self.name}")
        rng = random_of_split(SEED, self.version, list(SIZES).index(split), self.name)
        return self.draw(split, SIZES[split], rng)

    def verify(self) -> None:
        """Draw every split anew and compare it with the stored sha256; raises `DataError` that names the split."""
        for split in SIZES:
            stored = stored_digests().get(self.name, {}).get(split)
            require_digest(f"{NAME}/{self.name}", split, digest(self.generate(split)), stored)


def digest(clips: DrawnClips) -> str:
    """sha256 over the shapes and contents of frames and labels."""
    found = hashlib.sha256()
    for array in (clips.frames, clips.labels.astype("<i8")):
        found.update(repr(array.shape).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@cache
def stored_digests() -> dict[str, dict[str, str]]:
    """Set -> split -> sha256, as shipped."""
    return read_digests(DIGESTS)


def write_clip(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames (T, H, W, 3) as an mp4 file from which every pixel is read as it is.

    Raises:
        MissingExtra: PyAV is not installed.
    """
    av = need_extra("av", "video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.options = {"qp": "0", "preset": "veryfast"}
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_folder(path: Path, clips: DrawnClips, labels: tuple[str, ...]) -> None:
    """Write all clips into a folder that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        for number, (frames, label) in enumerate(zip(clips.frames, clips.labels.tolist(), strict=True)):
            folder = building / labels[label]
            folder.mkdir(exist_ok=True)
            write_clip(folder / f"{number:05d}.mp4", frames)
        building.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        building.rename(path)
    except OSError:
        if not path.is_dir():  # else another process was faster, and wrote the same
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _cache_folder() -> Path:
    return Path(os.environ.get("VPEFT_CACHE") or Path.home() / ".cache" / "vpeft")
