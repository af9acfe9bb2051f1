"""Self-prompt tuning: the prompts are tokens of the images; it is VPT otherwise."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import vpeft
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.layers.sampled_tokens import SampledTokens
from vpeft.methods import SelfPromptTuning, VPTDeep, VPTShallow


def layers_of(model: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """What the prompts of each block are drawn from, all images' tokens in one list."""
    x = model.patch_embed.proj(images).flatten(2).mT
    found = [x]
    x = model._pos_embed(x.unflatten(1, (4, 4))) if model.dynamic_img_size else model._pos_embed(x)
    for block in model.blocks[:-1]:
        x = block(x)
        found.append(x[:, 1:])
    return [tokens.flatten(0, 1) for tokens in found]


def is_row(token: Tensor, rows: Tensor) -> int:
    hits = (rows - token).abs().amax(1) < 1e-5
    assert hits.sum() == 1
    return int(hits.nonzero()[0])


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_different_tokens_of_the_frozen_model(deep: bool) -> None:
    model, images = base_vit(), images_for(base_vit(), 5)
    tuned = vpeft.tune(copy.deepcopy(model), SelfPromptTuning(tokens=20, deep=deep), num_classes=2, show=False)
    tuned.train()
    tuned.prepare([(images[:3], torch.zeros(3)), (images[3:], torch.zeros(2))])
    assert tuned.training
    prompts = [p for key, p in tuned.trainable() if key.endswith(".tokens")]
    found = [[is_row(token, rows) for token in p] for p, rows in zip(prompts, layers_of(model, images), strict=False)]
    assert len(found) == (3 if deep else 1)
    assert all(len(set(row)) == 20 for row in found)
    assert len({tuple(row) for row in found}) == len(found)  # each layer draws by itself
    assert any(number >= 48 for row in found for number in row)  # from the second batch too


def test_computes_what_vpt_does() -> None:
    images = images_for(base_vit())
    for method, plain in (
        (SelfPromptTuning(tokens=3), VPTDeep(tokens=3)),
        (SelfPromptTuning(deep=False), VPTShallow()),
    ):
        tuned = vpeft.tune(base_vit(), method, show=False).eval()
        tuned.prepare([(images, torch.zeros(2))])
        other = vpeft.tune(base_vit(), plain.model_copy(update={"tokens": method.tokens}), show=False).eval()
        other.load_adapter_state(tuned.adapter_state())
        assert torch.equal(tuned.features(images), other.features(images))


@pytest.mark.parametrize(("kind", "pool"), [("mean_pooling", torch.mean), ("max_pooling", torch.amax)])
def test_pools_windows_and_the_remainder(kind: str, pool) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(2, 14, 5)
    drawn = SampledTokens(4, kind)
    drawn.add(x)
    windows = torch.cat([pool(part, dim=1) for part in (x[:, :4], x[:, 4:8], x[:, 8:12], x[:, 12:])])
    assert len({is_row(token, windows) for token in drawn.kept}) == 4
    even = SampledTokens(5, kind)
    even.add(x[:, :12])  # no remainder: the last is over all of them
    expected = torch.cat([*(pool(x[:, 3 * i : 3 * i + 3], dim=1) for i in range(4)), pool(x[:, :12], dim=1)])
    assert len({is_row(token, expected) for token in even.kept}) == 5


def test_every_token_is_equally_likely() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(12)
    for _ in range(600):
        drawn = SampledTokens(3)
        for rows in torch.arange(12.0).split([4, 7, 1]):
            drawn.add(rows[None, :, None])
        counts[drawn.kept.long().flatten()] += 1
    assert (counts - 150).abs().max() < 4.5 * (600 * 0.25 * 0.75) ** 0.5


def test_counts_windows_and_needs_images() -> None:
    assert trained(SelfPromptTuning()) == 184_320
    assert trained(SelfPromptTuning(deep=False, tokens=100)) == 76_800
    tuned = vpeft.tune(tiny_swin(), SelfPromptTuning(tokens=4), show=False)
    tuned.prepare([(images_for(tiny_swin()), torch.zeros(2))])
    with pytest.raises(vpeft.VpeftError, match="was given none"):
        tuned.prepare([])
    images = images_for(base_vit())
    tuned = vpeft.tune(base_vit(), SelfPromptTuning(tokens=33, deep=False), show=False)
    (tokens,) = (p for _, p in tuned.trainable())
    before = tokens.clone()
    tuned.prepare([(images, None)])  # 32 tokens for 33 prompts: the last one keeps its start
    assert torch.equal(tokens[32], before[32]) and not (tokens[:32] == before[:32]).all(1).any()
