"""Draw docs/pocket_video/NAME.png: for each offline set of clips, every second frame of one clip of each class.

python tools/pocket_video_strips.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from vpeft.data.clips.strip import strip
from vpeft.data.pocket_video import pocket_video_sets

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pocket_video"


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, one in pocket_video_sets().items():
        clips = one.read("train")
        first = {label: clips.labels.tolist().index(number) for number, label in enumerate(one.labels)}
        frames = torch.from_numpy(clips.frames).permute(0, 1, 4, 2, 3)[:, ::2]
        picture = strip([(label, frames[index]) for label, index in first.items()])
        small = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.LANCZOS)
        small.quantize(256, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
