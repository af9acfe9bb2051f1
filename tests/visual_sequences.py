"""A tiny tokenizer of pictures, a tiny Llama over its tokens, and a folder of pictures with masks and edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from vpeft.backbones.picture_codec import SHAPE, PocketVq
from vpeft.backbones.pocket_sequence import new_llama, save_llama

CODES, TOKENS = 16, 4
CLASSES = ("ground", "block", "ball")


def write_codec(path: Path) -> Path:
    """A `PocketVq` for pictures of 8 x 8 pixels: 4 tokens out of 16."""
    torch.manual_seed(0)
    made = PocketVq(side=8, patch=4, codes=CODES, width=8, depth=1)
    save_file(made.state_dict(), str(path), metadata={SHAPE: json.dumps(made.shape)})
    return path


def write_llama(folder: Path, codes: int = CODES, width: int = 16) -> Path:
    """A Llama over the tokens, at random, as `save_pretrained` writes it, with the preprocessing of its pictures."""
    torch.manual_seed(1)
    config: Any = new_llama(codes, width, depth=2, length=256, heads=2).config
    config.attention_bias = config.mlp_bias = True  # so that biases can be tuned too
    made = type(new_llama(codes, 8, depth=1))(config)
    return save_llama(made, folder, side=8)


def write_pictures(root: Path, count: int = 10, side: int = 16) -> Path:
    """Images of blocks with masks of three classes, edges and depths in millimetres, and classes.txt."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "edges", "depth"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((side, side), np.uint8)
        top, left = rng.integers(0, side // 2, 2)
        mask[top : top + side // 2, left : left + side // 2] = 1 + number % 2
        image = np.stack([80 * mask, 255 - 60 * mask, 40 + 0 * mask], axis=-1).astype(np.uint8)
        image += rng.integers(0, 9, image.shape, dtype=np.uint8)
        edges = np.zeros_like(mask)
        edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        edges[1:] |= mask[1:] != mask[:-1]
        depth = 1_000 + 4_000 * mask.astype(np.uint16)
        for folder, pixels in (("images", image), ("masks", mask), ("edges", edges), ("depth", depth)):
            Image.fromarray(pixels).save(root / folder / f"{number:02d}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root
