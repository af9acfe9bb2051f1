"""open_clip's and transformers' CLIP written out in plain tensors, with a place for every change that a test makes.

Nothing here uses vpeft. A test passes functions by the place's name, such as "text.words" or "image.blocks.1.mlp"; each
is given what the operation gives and what it was given. What is not named stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Change = Callable[..., Tensor]
START, END, VOCABULARY, LENGTH = 38, 39, 40, 12


def open_clip_model() -> nn.Module:
    """Images of 32 pixels, texts of twelve tokens; widths 32 and 24, two and three blocks, a space of 16."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=32, patch_size=8, width=32, layers=3, head_width=8, mlp_ratio=2.0)
    text = CLIPTextCfg(context_length=LENGTH, vocab_size=VOCABULARY, width=24, heads=3, layers=3, mlp_ratio=2.0)
    torch.manual_seed(0)
    return _rough(CLIP(16, vision, text))


def equal_widths() -> nn.Module:
    """The same with a width of 32 in both towers."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=32, patch_size=8, width=32, layers=3, head_width=8, mlp_ratio=2.0)
    text = CLIPTextCfg(context_length=LENGTH, vocab_size=VOCABULARY, width=32, heads=4, layers=3, mlp_ratio=2.0)
    torch.manual_seed(0)
    return _rough(CLIP(16, vision, text))


def hf_model() -> nn.Module:
    """transformers' CLIP of the sizes of `open_clip_model`."""
    import transformers

    alike = {"num_hidden_layers": 3, "attention_dropout": 0.0}
    config = transformers.CLIPConfig(
        vision_config=transformers.CLIPVisionConfig(
            image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_attention_heads=4, **alike
        ).to_dict(),
        text_config=transformers.CLIPTextConfig(
            hidden_size=24,
            intermediate_size=48,
            num_attention_heads=3,
            max_position_embeddings=LENGTH,
            vocab_size=VOCABULARY,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=0,
            **alike,
        ).to_dict(),
        projection_dim=16,
    )
    torch.manual_seed(0)
    return _rough(transformers.CLIPModel(config))


CLIPS: dict[str, Callable[[], nn.Module]] = {"open_clip": open_clip_model, "hf_clip": hf_model}


def _rough(model: nn.Module) -> nn.Module:
    """Every parameter off zero and one; a scale of ten, at which differences show and do not overflow."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.logit_scale.fill_(2.3)  # type: ignore[operator]
    return model.eval()


def class_ids(count: int = 5) -> Tensor:
    """Texts [start, one to three words, full stop, end, padding] of `count` classes, (count, L)."""
    rows = torch.zeros(count, LENGTH, dtype=torch.int64)
    for number in range(count):
        words = [3 + 5 * number + step for step in range(1 + number % 3)]
        tokens = torch.tensor([START, *words, 2, END])
        rows[number, : len(tokens)] = tokens
    return rows


def pictures(count: int = 3) -> Tensor:
    """(count, 3, 32, 32)."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@dataclass
class Block:
    """The tensors of one block, whatever the library calls them."""

    norms: tuple[nn.Module, nn.Module]
    qkv: tuple[Tensor, Tensor]
    out: nn.Module
    fcs: tuple[nn.Module, nn.Module]
    heads: int


def _open_clip_block(block: Any) -> Block:
    attn = block.attn
    return Block(
        (block.ln_1, block.ln_2),
        (attn.in_proj_weight, attn.in_proj_bias),
        attn.out_proj,
        (block.mlp.c_fc, block.mlp.c_proj),
        attn.num_heads,
    )


def _hf_block(layer: Any) -> Block:
    attn = layer.self_attn
    three = (attn.q_proj, attn.k_proj, attn.v_proj)
    return Block(
        (layer.layer_norm1, layer.layer_norm2),
        (torch.cat([one.weight for one in three]), torch.cat([one.bias for one in three])),
        attn.out_proj,
        (layer.mlp.fc1, layer.mlp.fc2),
        attn.num_heads,
    )


class ClipByHand:
    """Both towers of a frozen CLIP; `changes` as the module says."""

    def __init__(self, model: Any, changes: Mapping[str, Change] | None = None) -> None:
        self.model, self.changes = model, dict(changes or {})
        self.hf = type(model).__name__ == "CLIPModel"

    def at(self, name: str, out: Tensor, came: Tensor | None = None) -> Tensor:
        change = self.changes.get(name)
        return out if change is None else change(out, came)

    def _gelu(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid() if self.hf else F.gelu(x)

    def _norm(self, layer: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, layer.eps)

    def block(self, name: str, b: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.at(f"{name}.before", x)
        z = self._norm(b.norms[0], x)
        projected = self.at(f"{name}.qkv", F.linear(z, *b.qkv), z)
        q, k, v = (part.unflatten(-1, (b.heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        mixed = ((scores if mask is None else scores + mask).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        attn = self.at(f"{name}.proj", F.linear(mixed, b.out.weight, b.out.bias), mixed)
        x = x + self.at(f"{name}.attn", attn)
        z = self._norm(b.norms[1], x)
        hidden = self._gelu(self.at(f"{name}.fc1", F.linear(z, b.fcs[0].weight, b.fcs[0].bias), z))
        mlp = self.at(f"{name}.fc2", F.linear(hidden, b.fcs[1].weight, b.fcs[1].bias), hidden)
        mlp = self.at(f"{name}.mlp_branch", self.at(f"{name}.mlp", mlp), x)
        return x + mlp

    def image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the feature in the shared space, (B, E), not normalised."""
        if self.hf:
            v = self.model.vision_model
            v = getattr(v, "vision_model", v)
            patch, token = v.embeddings.patch_embedding, v.embeddings.class_embedding
            positions, norm_pre, norm = v.embeddings.position_embedding.weight, v.pre_layrnorm, v.post_layernorm
            blocks, last = [_hf_block(layer) for layer in v.encoder.layers], self.model.visual_projection.weight.T
        else:
            v = self.model.visual
            patch, token, positions, norm_pre, norm = (
                v.conv1,
                v.class_embedding,
                v.positional_embedding,
                v.ln_pre,
                v.ln_post,
            )
            blocks, last = [_open_clip_block(block) for block in v.transformer.resblocks], v.proj
        x = F.conv2d(images, patch.weight, None, stride=patch.stride).flatten(2).transpose(1, 2)
        x = torch.cat([token.expand(len(x), 1, -1), x], dim=1) + positions
        x = self._norm(norm_pre, self.at("image.embedded", x))
        for number, block in enumerate(blocks):
            x = self.block(f"image.blocks.{number}", block, x, None)
        return self.at("image.outlet", self._norm(norm, x[:, 0]) @ last)

    def text(self, ids: Tensor) -> Tensor:
        """(R, L) -> the feature in the shared space, (R, E), not normalised."""
        if self.hf:
            t = self.model.text_model
            t = getattr(t, "text_model", t)
            table, positions = t.embeddings.token_embedding.weight, t.embeddings.position_embedding.weight
            blocks, norm = [_hf_block(layer) for layer in t.encoder.layers], t.final_layer_norm
            last = self.model.text_projection.weight.T
        else:
            t = self.model
            table, positions, norm, last = (
                t.token_embedding.weight,
                t.positional_embedding,
                t.ln_final,
                t.text_projection,
            )
            blocks = [_open_clip_block(block) for block in t.transformer.resblocks]
        x = self.at("text.words", table[ids], ids) + positions[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        for number, block in enumerate(blocks):
            x = self.block(f"text.blocks.{number}", block, x, mask)
        x = self._norm(norm, x)
        x = x[torch.arange(len(x)), ids.argmax(dim=1)]
        return self.at("text.outlet", x @ last)

    def logits(self, images: Tensor, ids: Tensor) -> Tensor:
        """(B, C): exp(scale) times the cosines."""
        f, w = F.normalize(self.image(images), dim=-1), F.normalize(self.text(ids), dim=-1)
        return self.model.logit_scale.exp() * f @ w.T
