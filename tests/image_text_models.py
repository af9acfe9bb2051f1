"""Tiny image-text models of four libraries at random start: images of 32 pixels (pocket_clip: 64), short texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MARKS = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
WORDS = ("<pad>", "<start>", "<unk>", "<end>", "a", "photo", "of", ".", "the", "cat", "dog", "red", "blue", "ant")


def open_clip() -> nn.Module:
    """open_clip's CLIP."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=32, patch_size=8, width=32, layers=2, head_width=8, mlp_ratio=2.0)
    text = CLIPTextCfg(context_length=12, vocab_size=40, width=32, heads=4, layers=2, mlp_ratio=2.0)
    torch.manual_seed(0)
    return CLIP(24, vision, text).eval()


def hf_clip() -> nn.Module:
    """transformers' CLIP."""
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config={**TEXT, **MARKS}, vision_config=VISION, projection_dim=24)
    return transformers.CLIPModel(config).eval()


def siglip() -> nn.Module:
    """transformers' SigLIP."""
    import transformers

    torch.manual_seed(0)
    text = {**TEXT, **MARKS, "projection_size": 32}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION)).eval()


def siglip2() -> nn.Module:
    """transformers' SigLIP 2."""
    import transformers

    torch.manual_seed(0)
    vision: dict[str, Any] = {**{key: value for key, value in VISION.items() if key != "image_size"}, "num_patches": 16}
    text = {**TEXT, **MARKS, "projection_size": 32}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision)).eval()


def pocket() -> nn.Module:
    """pocket_clip at random start."""
    from vpeft.backbones.pocket_clip import PocketClip

    torch.manual_seed(0)
    return PocketClip().eval()


LIBRARIES: dict[str, Callable[[], nn.Module]] = {
    "open_clip": open_clip,
    "hf_clip": hf_clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "pocket_clip": pocket,
}


def word_tokenizer() -> Any:
    """A tokenizer of transformers that knows `WORDS`."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = [("<start>", 1), ("<end>", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<start> $A <end>", special_tokens=marks)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )


def saved_clip(folder: Path) -> Path:
    """A checkpoint of transformers' CLIP with its tokenizer and image processor, in a folder."""
    import transformers

    hf_clip().save_pretrained(folder)  # type: ignore[operator]
    word_tokenizer().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return folder


def images(model: nn.Module, count: int = 4) -> Tensor:
    """Images of the model's size."""
    import vpeft

    side = vpeft.describe(model).inputs.size
    return torch.randn(count, 3, *side, generator=torch.Generator().manual_seed(3))


def own_logits(model: Any, pictures: Tensor, ids: Tensor) -> Tensor | None:
    """The model's own similarities (B, T) of images and texts; None for SigLIP 2, which takes patches."""
    name = type(model).__name__
    if name.startswith("Siglip2"):
        return None
    if hasattr(model, "config"):
        found: Tensor = model(pixel_values=pictures, input_ids=ids).logits_per_image
        return found
    seen, read, scale = model(pictures, ids)[:3]
    return scale * seen @ read.T
