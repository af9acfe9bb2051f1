"""CORe50: core50_128x128/ with sessions s1 ... s11, in each the objects o1 ... o50, in each the frames of a video."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.images import is_image_name
from vpeft.data.items import FilePicture, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source

# Backgrounds that are tested alone; the other eight sessions train, one after the other in a stream of domains.
TESTED = ("s3", "s7", "s10")
TRAINED = ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")
OBJECTS = 50
_SESSION, _OBJECT = re.compile(r"s([1-9]|1[01])"), re.compile(r"o([1-9]\d?)")


@source
class Core50:
    """50 objects, filmed before eleven backgrounds, the sessions; the frames of sessions 3, 7 and 10 are the test.

    Name the folder of one session of training, for a stream of domains: the test is the same for all of them. Or name
    the folder with all sessions, whose training frames are then joined.
    """

    name = "core50"
    title = "CORe50, or one session of it: s1/ ... s11/ with o1/ ... o50/ in each"

    def claims(self, config: DataConfig) -> Claim:
        root, sessions = _named(config)
        there = all((root / one / "o1").is_dir() for one in (sessions[0], *TESTED))
        return Claim.FORMAT if there else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root, sessions = _named(config)
        objects = [f"o{number}" for number in range(1, OBJECTS + 1)]
        listing = Listing(f"Expected: {self.title}.", labels=objects)
        asked = Path(config.source).expanduser().name
        if asked in TESTED and sessions == (asked,):
            raise DataError(f"{config.source} is a session of the test, as {', '.join(TESTED)} are; name another one.")
        for session in (*sessions, *TESTED):
            if not (root / session).is_dir():
                raise DataError(f"{root} has no session {session}. {listing.expected}")
            for folder in sorted((root / session).iterdir()):
                if not folder.is_dir():
                    listing.problems.add("ignored", f"{session}/{folder.name}")
                    continue
                if not _OBJECT.fullmatch(folder.name) or folder.name not in objects:
                    raise DataError(f"{folder} is none of the objects o1 to o{OBJECTS}. {listing.expected}")
                for file in sorted(folder.iterdir()):
                    name = f"{session}/{folder.name}/{file.name}"
                    if is_image_name(file):
                        listing.add(
                            "test" if session in TESTED else "train", Item(name, folder.name, FilePicture(file))
                        )
                    else:
                        listing.problems.add("ignored", name)
        return listing


def _named(config: DataConfig) -> tuple[Path, tuple[str, ...]]:
    """The folder of the sessions, and those of training that are asked for."""
    root = Path(config.source).expanduser()
    if _SESSION.fullmatch(root.name):
        return root.parent, (root.name,)
    inner = root / "core50_128x128"
    return (inner if inner.is_dir() else root), TRAINED
