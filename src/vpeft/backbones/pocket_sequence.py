"""A new Llama over the tokens of pictures, at random: the start of autoregressive vision from scratch.

`--backbone host::py:vpeft.backbones.pocket_sequence:pocket_sequence` is one over the tokens of `pocket_vq`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import need_extra

__all__ = ["new_llama", "pocket_sequence", "save_llama"]

CODES, SIDE = 512, 32  # of pocket_vq


def new_llama(codes: int, width: int, depth: int, length: int = 1024, heads: int | None = None) -> nn.Module:
    """A `LlamaForCausalLM` with random weights and DeLVM's proportions (arXiv 2402.04841).

    These are RMSNorm, SwiGLU of 8/3 the width, rotary positions, and an output layer of its own. No token has a special
    meaning. DeLVM's smaller model has codes=8192, width=1024, depth=22, heads=8, length=2048.

    Args:
        codes: of the tokenizer.
        width, depth: of the transformer.
        length: the most tokens in a sentence.
        heads: of the attention; one for each 32 channels by default.
    """
    transformers: Any = need_extra("transformers", "hf")
    config = transformers.LlamaConfig(
        vocab_size=codes,
        hidden_size=width,
        intermediate_size=8 * round(width / 3),
        num_hidden_layers=depth,
        num_attention_heads=heads or max(1, width // 32),
        max_position_embeddings=length,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    made: nn.Module = transformers.LlamaForCausalLM(config)
    return made


def pocket_sequence() -> nn.Module:
    """A new one over the tokens of `pocket_vq`: 128 channels, 4 blocks, 0.9 M parameters, the same at each call.

    An adapter file then finds the weights again that it was trained on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_llama(CODES, 128, 4)


def save_llama(model: nn.Module, folder: Path, side: int = SIDE) -> Path:
    """Write a model as `save_pretrained` does, all or nothing, for `--backbone host::hf:FOLDER`.

    Args:
        model: of transformers.
        folder: which must not be there.
        side: pixels of a side of the pictures, which the folder states.
    """
    part = folder.with_name(f"{folder.name}.part")
    saved: Any = model
    saved.save_pretrained(part)
    stated: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    stated |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    (part / "preprocessor_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return part.rename(folder)
