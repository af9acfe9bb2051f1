"""LPT restated with a whole pass for the query, counted; its two stages and its penalty."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import LPT


def by_hand(own: dict[str, Tensor], images: Tensor, first: int, chosen: int) -> tuple[Tensor, Tensor]:
    """The feature and the sum of the cosines over the batch size; prompts stand at the end, as in the authors' code."""
    model = base_vit()
    hand = ViTByHand(model)
    start = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    start = torch.cat([model.cls_token.expand(len(start), -1, -1), start], dim=1) + model.pos_embed

    def whole(groups: Tensor | None) -> Tensor:
        x = start
        for i in range(3):
            more = [own[f"blocks.{i}.insert_tokens.tokens"].expand(len(x), -1, -1)]
            if groups is not None and i >= first:
                more.append(groups[:, i - first])
            x = hand.block(i, torch.cat([x, *more], dim=1))[:, :17]
        return model.norm(x)[:, 0]

    with torch.no_grad():
        query = whole(None)
    keys, pool = own[f"blocks.{first}.input.tap.keys"], own[f"blocks.{first}.input.tap.pool"]
    cosines = F.cosine_similarity(query[:, None], keys[None], dim=-1)
    ids = cosines.argsort(dim=1, descending=True)[:, :chosen]
    groups = torch.stack([pool[row].mean(0) for row in ids])
    return whole(groups), cosines.gather(1, ids).sum() / len(images)


def test_equals_a_restatement_with_its_gradients() -> None:
    method = LPT(prompts=3, pool=6, chosen=2, group_blocks=2)
    tuned = vpeft.tune(base_vit(), method, show=False).eval()
    randomise(tuned, 0.3)
    own = {key: p.detach().clone().requires_grad_() for key, p in tuned.trainable()}
    images = images_for(base_vit(), 3)
    expected, cosines = by_hand(own, images, 1, 2)
    found = tuned.features(images)
    penalty = tuned.penalty()
    assert torch.allclose(found, expected, atol=1e-5) and torch.allclose(penalty, -0.5 * cosines, atol=1e-6)
    assert tuned.penalty() is None  # each pass counts once
    direction = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    ((found * direction).sum() + penalty).backward()
    ((expected * direction).sum() - 0.5 * cosines).backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(parameter.grad, own[key].grad, atol=1e-4 * float(own[key].grad.abs().max() + 1)), key


def test_the_second_stage_goes_on_with_the_prompts_and_the_head_of_the_first() -> None:
    images = images_for(base_vit())
    first = vpeft.tune(base_vit(), LPT(prompts=3, stage="shared"), num_classes=4, show=False).eval()
    randomise(first)
    method, kept = first.methods()[0].grouped(first)
    again = vpeft.tune(base_vit(), method, num_classes=4, show=False).eval()
    again.load_adapter_state({**again.adapter_state(), **kept})
    names = {key for key, _ in again.trainable()}
    assert names == {"blocks.1.input.tap.keys", "blocks.1.input.tap.pool", "head.weight", "head.bias"}
    model, prompts = base_vit(), kept["blocks.0.insert_tokens.tokens"].expand(2, -1, -1)
    x = model._pos_embed(model.patch_embed(images))
    x = ViTByHand(model).block(0, torch.cat([x, prompts], dim=1))[:, :17]
    query = again.adapter().get_submodule("blocks.1.input.tap").query(x)
    assert torch.allclose(query, first.features(images), atol=1e-5)
    with pytest.raises(vpeft.VpeftError, match="goes on from stage='shared'"):
        method.grouped(again)


def test_a_copy_has_no_part_of_a_graph() -> None:
    tuned = vpeft.tune(base_vit(), LPT(prompts=2), num_classes=3, show=False)
    tuned(images_for(base_vit())).sum().backward()
    assert copy.deepcopy(tuned).penalty() is None and tuned.penalty() is not None


def test_counts_starts_and_refuses() -> None:
    assert trained(LPT(stage="shared")) == 92_160
    assert trained(LPT(stage="groups")) == 921_600 + 15_360
    assert trained(LPT()) == 1_029_120
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), LPT(), show=False)
    with pytest.raises(vpeft.VpeftError, match="chooses 3 of 2 keys"):
        vpeft.tune(base_vit(), LPT(pool=2, chosen=3), show=False)
    own = dict(vpeft.tune(base_vit(), LPT(), show=False).trainable())
    assert 0.015 < own["blocks.1.input.tap.pool"].std() < 0.025
