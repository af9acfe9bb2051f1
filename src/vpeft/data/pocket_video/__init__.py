"""The offline sets of clips: 16 frames of 64 x 64 pixels, in mp4 files that are made on this machine.

    folder = pocket_video_sets()["motion"].folder("train")

A file of this folder that has a `SET` is a set; nothing else needs to know it. `python -m vpeft.data.pocket_video`
draws them anew, prints what it checks, and with `--store` writes the digests of a new or changed set.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from vpeft.data.pocket_video.video_set import FRAMES, SEED, SIZES, VERSION, DrawnClips, VideoSet

__all__ = ["FRAMES", "SEED", "SIZES", "VERSION", "DrawnClips", "VideoSet", "pocket_video_sets"]


@cache
def pocket_video_sets() -> dict[str, VideoSet]:
    """Every set by name, sorted."""
    found: dict[str, VideoSet] = {}
    for entry in pkgutil.iter_modules(__path__):
        if entry.name == "__main__":
            continue
        one = getattr(importlib.import_module(f"{__name__}.{entry.name}"), "SET", None)
        if isinstance(one, VideoSet):
            found[one.name] = one
    return dict(sorted(found.items()))
