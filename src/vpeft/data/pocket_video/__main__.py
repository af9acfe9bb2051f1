"""`python -m vpeft.data.pocket_video [--store]`: draw every set anew, time it, compare or store its digests."""

from __future__ import annotations

import sys
from functools import partial

from vpeft.data.drawn_splits import compare_or_store
from vpeft.data.pocket_video import pocket_video_sets
from vpeft.data.pocket_video.video_set import DIGESTS, SIZES, VideoSet, digest


def _digests(one: VideoSet) -> dict[str, str]:
    return {split: digest(one.generate(split)) for split in SIZES}


if __name__ == "__main__":
    sets = {name: partial(_digests, one) for name, one in pocket_video_sets().items()}
    sys.exit(compare_or_store(DIGESTS, sets, "python -m vpeft.data.pocket_video", __doc__ or ""))
