"""The frames that a model saw of a clip, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional

# Height of a frame and of a line of text, and the space around, in pixels.
HEIGHT, LINE, MARGIN = 112, 16, 4
# Frames in a line; a clip of more goes on in the next.
ACROSS = 16


def strip(rows: Sequence[tuple[str, Tensor]], title: str = "") -> Image.Image:
    """Rows of frames with a text above each.

    Args:
        rows: a text, and frames uint8 (T, 3, H, W); T may differ.
        title: a text above all.
    """
    lines = [
        (text if start == 0 else "", frames[start : start + ACROSS])
        for text, frames in rows
        for start in range(0, len(frames), ACROSS)
    ]
    made = [(text, _side_by_side(frames)) for text, frames in lines]
    width = max((picture.width for _, picture in made), default=0) + 2 * MARGIN
    top = LINE if title else 0
    page = Image.new("RGB", (width, top + sum(picture.height + LINE + MARGIN for _, picture in made)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    pen.text((MARGIN, 2), title, fill="black", font=font)
    for text, picture in made:
        pen.text((MARGIN, top + 2), text, fill="black", font=font)
        page.paste(picture, (MARGIN, top + LINE))
        top += picture.height + LINE + MARGIN
    return page


def _side_by_side(frames: Tensor) -> Image.Image:
    height, width = frames.shape[-2:]
    small = functional.resize(frames, [HEIGHT, max(1, round(width * HEIGHT / height))])
    gap = torch.full((*small.shape[:-1], 2), 255, dtype=torch.uint8)
    wide = torch.cat([small, gap], dim=-1)
    row: Image.Image = functional.to_pil_image(torch.cat(list(wide), dim=-1))
    return row
