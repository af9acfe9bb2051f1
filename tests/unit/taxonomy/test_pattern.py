"""Shapes in letters: what stands for the width, for tokens, for kernels, and what trains or is kept."""

from __future__ import annotations

import pytest
import torch
from tests.models import tiny_vit
from torch import nn

import vpeft
from vpeft.backbones.edits import Edit
from vpeft.methods import all_methods
from vpeft.taxonomy.pattern import kept_shapes, shape_of, shares_tensors, trained_shapes

M = all_methods()


def edits_of(name: str, **fields: object) -> list[Edit]:
    return list(M[name](**fields).edits(vpeft.describe(tiny_vit())))


@pytest.mark.parametrize(
    ("size", "place", "letters"),
    [
        ((4, 48), "attn.q", "r x D"),
        ((48, 4), "attn.q", "D x r"),
        ((48,), "attn.q", "D"),
        ((1,), "attn.q", "1"),
        ((), "attn.q", "1"),
        ((192, 4), "mlp.fc1", "D_out x r"),
        ((4, 48), "mlp.fc1", "r x D_in"),
        ((144, 48), "attn", "3D x D"),
        ((8, 8, 3, 3), "attn", "r x r x k x k"),
        ((3, 3, 24), "attn", "r x r x r"),
        ((8, 17), "attn", "r x N"),
        ((1, 8), "attn", "1 x r"),
    ],
)
def test_sizes_become_letters(size: tuple[int, ...], place: str, letters: str) -> None:
    block = vpeft.describe(tiny_vit()).blocks[0]
    found = next(one for one in block.walk() if one.name == f"{block.name}.{place}")
    assert shape_of(torch.zeros(size), found) == letters


def test_what_trains_and_what_is_kept() -> None:
    assert trained_shapes(edits_of("lora", rank=4)) == ("D x r", "r x D")
    assert not kept_shapes(edits_of("lora", rank=4))
    assert trained_shapes(edits_of("vera", rank=5)) == ("D", "r")
    assert kept_shapes(edits_of("vera", rank=5)) == ("D x r", "r x D")
    assert trained_shapes(edits_of("lora_fa", rank=4)) == ("D x r",)
    assert kept_shapes(edits_of("lora_fa", rank=4)) == ("r x D",)
    assert trained_shapes(edits_of("bitfit")) == ("own bias",)


def test_a_tensor_that_serves_two_edits_is_shared() -> None:
    block = vpeft.describe(tiny_vit()).blocks[0]
    one, other = nn.Linear(48, 48), nn.Linear(48, 48)
    assert shares_tensors([block.attn.after(one), block.mlp.after(one)])
    assert not shares_tensors([block.attn.after(one), block.mlp.after(other)])
    one.requires_grad_(False)
    assert not shares_tensors([block.attn.after(one), block.mlp.after(one)])  # nothing of it trains
