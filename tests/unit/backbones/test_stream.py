"""Edits of the residual stream between two branches."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import FAMILIES, images_for, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.methods import Method


class Times(nn.Module):
    """h -> a h + 1."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.factor + 1


class Scale(Method):
    """The stream times two plus one, then the branch's own output times three: order shows."""

    stream: str = "stream1"
    also_branch: bool = False

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        block = backbone.blocks[1]
        place = block.stream1 if self.stream == "stream1" else block.stream2
        yield place.after(Times(2.0))
        if self.also_branch:
            yield block.attn_branch.before(Times(0.5))
            yield block.attn_branch.after(Times(3.0))


@pytest.mark.parametrize("also_branch", [False, True])
def test_stream1_is_between_the_branches(also_branch: bool) -> None:
    plain = tiny_vit()
    images = images_for(plain)
    tuned = vpeft.tune(copy.deepcopy(plain), Scale(also_branch=also_branch), show=False)
    x = plain.blocks[0](plain._pos_embed(plain.patch_embed(images)))
    block = plain.blocks[1]
    x = x + (3 * block.attn(block.norm1(x * 0.5 + 1)) + 1 if also_branch else block.attn(block.norm1(x)))
    x = 2 * x + 1
    x = x + block.mlp(block.norm2(x))
    expected = plain.norm(plain.blocks[2](x))[:, 0]
    assert torch.allclose(tuned.features(images), expected, atol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_stream2_is_what_leaves_the_block(family: str) -> None:
    plain = FAMILIES[family]()
    images = images_for(plain)
    tuned = vpeft.tune(copy.deepcopy(plain), Scale(stream="stream2"), show=False)
    block = vpeft.describe(plain).blocks[1]
    assert block.exit is not None
    block.exit.module.register_forward_hook(lambda _m, _a, out: 2 * out + 1)
    assert torch.allclose(tuned.features(images), plain(images), atol=1e-5)
