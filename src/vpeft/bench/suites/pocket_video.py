"""pocket-video: two offline tasks on clips of 16 frames of 64 x 64 pixels.

The sets and how they are made are in `vpeft.data.pocket_video`, which also keeps the digests of all splits. Clips are
read from the mp4 files that a set writes, and what is read must have the digest of what was drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from vpeft.bench.key import canonical
from vpeft.bench.sealed import SealedTest
from vpeft.bench.splits import Transform
from vpeft.bench.suite import BenchTask, Suite, Tier
from vpeft.data.clips.clip import ClipArray
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.image_set import ImageSet
from vpeft.data.items import Item
from vpeft.data.pocket_video import pocket_video_sets
from vpeft.data.pocket_video.video_set import FRAMES, NAME, SIDE, DrawnClips, digest, stored_digests
from vpeft.errors import VpeftError

# All frames of a clip, each once.
CLIP = ClipConfig(frames=FRAMES, stride=1)


class OtherClips(VpeftError):
    """A split is not the one that the suite's results were made with."""


@dataclass(frozen=True, eq=False)
class SplitClips:
    """Clips with one class each, in memory, and the digest of each split that they are of."""

    parts: tuple[DrawnClips, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(len(clips) for clips in self.parts)

    @property
    def content(self) -> bytes:
        return canonical(self.digests).encode()

    def dataset(self, labels: Sequence[str], transform: Transform | None, seed: int) -> ImageSet:
        items = [
            Item(f"{name}/{index:05d}", labels[label], ClipArray(clips.frames, index))
            for name, clips in zip(self.names, self.parts, strict=True)
            for index, label in enumerate(clips.labels.tolist())
        ]
        return ImageSet(items, list(labels), transform=transform, seed=seed)

    def joined(self, other: SplitClips) -> SplitClips:
        return SplitClips((*self.parts, *other.parts), (*self.names, *other.names), (*self.digests, *other.digests))


def _split(name: str, split: str) -> SplitClips:
    clips = pocket_video_sets()[name].read(split)
    found, stored = digest(clips), stored_digests().get(name, {}).get(split)
    if stored is not None and found != stored:
        raise OtherClips(
            f"The split {split!r} of {NAME}/{name} is {found[:12]} (sha256) when its videos are read, but the suite"
            f" states {stored[:12]}. Remove {pocket_video_sets()[name].folder(split)}, and they are made anew."
        )
    return SplitClips((clips,), (split,), (found,))


def _open(name: str) -> BenchTask:
    one = pocket_video_sets()[name]
    train, val, test = (_split(name, split) for split in ("train", "val", "test"))
    stated = {
        "suite": NAME,
        "name": name,
        "labels": one.labels,
        "side": SIDE,
        "frames": FRAMES,
        "splits": {split: part.digests[0] for split, part in (("train", train), ("val", val), ("test", test))},
    }
    return BenchTask(
        suite=NAME,
        name=name,
        group=SUITE.groups[name],
        labels=one.labels,
        train=train,
        val=val,
        test=SealedTest(f"{NAME}/{name}", lambda: test),
        digest=hashlib.sha256(canonical(stated).encode()).hexdigest(),
        image_size=(SIDE, SIDE),
        clip=CLIP,
    )


SUITE = Suite(
    name=NAME,
    title="pocket-video",
    about="Two offline tasks on clips of 16 frames, in pairs of classes that only the order of frames tells apart; 480"
    " + 240 + 480 clips each.",
    groups={"motion": "drawn", "gesture": "handwritten"},
    tiers={
        "smoke": Tier(protocol="pocket-video-smoke@1", seeds=1, tasks=("motion",)),
        "quick": Tier(protocol="pocket-video-quick@1", seeds=1),
        "full": Tier(protocol="pocket-video@1", seeds=3),
    },
    default_tier="quick",
    open=_open,
    licence="that of each set; see vpeft.data.pocket_video",
)
