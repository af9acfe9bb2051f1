"""timm's ViT and Swin written out in plain tensors, with a place for every change that a test wants to make.

Nothing here uses vpeft. A test passes functions by the place's name; what is not given is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Change = Callable[..., Tensor]


class ViTByHand:
    """The frozen computation of a tiny ViT with class token; `changes` maps "blocks.0.norm1", "blocks.0.qkv" ... to a
    function of the operation's output and its input."""

    def __init__(self, model: nn.Module, changes: Mapping[str, Change] | None = None) -> None:
        self.model, self.changes = model, dict(changes or {})

    def at(self, name: str, out: Tensor, came: Tensor | None = None) -> Tensor:
        change = self.changes.get(name)
        return out if change is None else change(out, came)

    def linear(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        return self.at(name, F.linear(x, layer.weight, layer.bias), x)

    def norm(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        return self.at(name, F.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, layer.eps), x)

    def block(self, number: int, x: Tensor) -> Tensor:
        b, name = self.model.blocks[number], f"blocks.{number}"
        heads = b.attn.num_heads
        z = self.norm(f"{name}.norm1", b.norm1, x)
        qkv = self.linear(f"{name}.qkv", b.attn.qkv, z)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        attn = self.at(f"{name}.attn", self.linear(f"{name}.proj", b.attn.proj, mixed), z)
        x = self.at(f"{name}.skip1", x) + self.at(f"{name}.attn_branch", attn, x)
        z = self.norm(f"{name}.norm2", b.norm2, x)
        hidden = F.gelu(self.linear(f"{name}.fc1", b.mlp.fc1, z))
        mlp = self.at(f"{name}.mlp", self.linear(f"{name}.fc2", b.mlp.fc2, hidden), z)
        x = self.at(f"{name}.skip2", x) + self.at(f"{name}.mlp_branch", mlp, x)
        return self.at(name, x)

    def __call__(self, images: Tensor) -> Tensor:
        model = self.model
        patch = model.patch_embed.proj
        x = F.conv2d(images, patch.weight, patch.bias, stride=patch.stride).flatten(2).transpose(1, 2)
        x = self.at("patch", x)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
        for number in range(len(model.blocks)):
            x = self.block(number, x)
        return self.at("outlet", self.norm("norm", model.norm, x)[:, 0])


def randomise(tuned: nn.Module, std: float = 0.2) -> None:
    """Give every trained tensor of a TunedModel random values, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, parameter in tuned.trainable():  # type: ignore[operator]
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
