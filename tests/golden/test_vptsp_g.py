"""VPTSP-G's encoder against a restatement with the prompts before the class token, and its counts."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch

import vpeft
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.methods import VPTSPG, BitFit


@pytest.mark.parametrize("fields", [{}, {"step": 2}, {"depth": 2}])
def test_equals_a_restatement_with_prompts_in_front(fields: dict[str, int]) -> None:
    plain = tiny_vit()
    tuned = vpeft.tune(copy.deepcopy(plain), VPTSPG(tokens=4, biases=False, **fields), show=False)
    state = {key: torch.nn.init.normal_(value) for key, value in tuned.trainable()}
    counts = {"step": [4, 2, 0], "depth": [4, 4, 0]}.get(next(iter(fields), ""), [4, 4, 4])
    images = images_for(plain)
    x = plain._pos_embed(plain.patch_embed(images))
    for i, (block, count) in enumerate(zip(plain.blocks, counts, strict=True)):
        prompts = state.pop(f"blocks.{i}.insert_tokens.tokens", torch.zeros(0, 48))
        assert len(prompts) == count
        x = block(torch.cat([prompts.expand(2, -1, -1), x], dim=1))[:, count:]
    assert not state
    assert torch.allclose(tuned.features(images), plain.norm(x)[:, 0], atol=1e-5)


def test_counts() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert vpeft.tune(backbone, VPTSPG(biases=False), verify=False, show=False).plan().trainable == 20 * 768 * 12
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
    biases = vpeft.tune(backbone, BitFit(), verify=False, show=False).plan().trainable
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
    tuned = vpeft.tune(backbone, VPTSPG(tokens=80, step=2, depth=11), verify=False, show=False)
    assert tuned.plan().trainable == biases + 768 * sum(80 - 2 * i for i in range(11))


def test_start_is_xavier_normal() -> None:
    tuned = vpeft.tune(tiny_vit(), VPTSPG(tokens=200, step=75, biases=False), show=False)
    for block, count in ((0, 200), (1, 125), (2, 50)):  # the authors make 200 in each block and use the first ones
        tokens = tuned.adapter().get_submodule(f"blocks.{block}.insert_tokens").tokens
        assert tokens.shape == (count, 48)
        assert float(tokens.detach().std()) == pytest.approx(math.sqrt(2 / (48 * 201)), rel=0.06)


def test_a_convolutional_backbone_is_refused() -> None:
    with pytest.raises(vpeft.MissingPlace, match="cannot insert_tokens"):
        vpeft.tune(tiny_convnext(), VPTSPG())
