"""The offline sets of clips, as 'pocket-video/NAME'; their videos are written when they are asked for first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpeft.data.clips.clip import ClipFile
from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest

if TYPE_CHECKING:
    from vpeft.data.pocket_video import VideoSet

_PREFIX = "pocket-video/"


def _sets() -> Mapping[str, VideoSet]:
    # Late: the sets are only needed when one of them is asked for.
    from vpeft.data.pocket_video import pocket_video_sets

    return pocket_video_sets()


@source
class PocketVideo:
    """Each set has its own splits."""

    name = "pocket-video"
    title = "a set of clips of the offline suite, 'pocket-video/NAME'"
    gives_clips = True

    def claims(self, config: DataConfig) -> Claim:
        if not config.source.startswith(_PREFIX):
            return Claim.NONE
        # A folder of that name may be meant instead: then neither is taken without asking.
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        return [_PREFIX + name for name in _sets()]

    def read(self, config: DataConfig) -> Listing:
        name = config.source.removeprefix(_PREFIX)
        sets = _sets()
        if name not in sets:
            raise DataError(f"pocket-video has no set {name!r}. {nearest(name, sets)}")
        one = sets[name]
        listing = Listing(f"Expected: {self.title}.", labels=one.labels)
        for split in SPLITS:
            folder = one.folder(split)
            for path in sorted(folder.glob("*/*.mp4")):
                listing.add(split, Item(f"{split}/{path.parent.name}/{path.name}", path.parent.name, ClipFile(path)))
        return listing
