"""The parallel adapter and MAM restated and counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import MAM, ParallelAdapter


@pytest.mark.parametrize("site", ["attn", "mlp"])
@pytest.mark.parametrize("reads", ["post_norm", "pre_norm"])
def test_the_parallel_adapter_equals_a_restatement(site: str, reads: str) -> None:
    method = ParallelAdapter(sites=(site,), bottleneck=5, scale=3.0, input=reads)
    tuned = vpeft.tune(base_vit(), method, show=False).eval()
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    place = site if reads == "post_norm" else f"{site}_branch"
    for i in range(3):
        parts = [own[f"blocks.{i}.{place}.parallel.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias")]

        def change(y, x, parts=parts):  # type: ignore[no-untyped-def]
            d, e, u, v = parts
            return y + 3.0 * (torch.relu(x @ d.T + e) @ u.T + v)

        changes[f"blocks.{i}.{place}"] = change
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


def test_counts_and_starts_of_the_parallel_adapter() -> None:
    assert trained(ParallelAdapter()) == 156_768
    assert trained(ParallelAdapter(bottleneck=64)) == 1_189_632
    assert trained(ParallelAdapter(learn_scale=True)) == 156_768 + 12
    assert trained(ParallelAdapter(layer_norm="in")) == 156_768 + 12 * 1536
    assert vpeft.tune(base_vit(), ParallelAdapter(), show=False).verify().identity
    own = dict(vpeft.tune(base_vit(), ParallelAdapter(learn_scale=True), show=False).trainable())
    assert own["blocks.0.mlp.parallel.scale"].item() == 1.0


def test_mam_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), MAM(length=3, bottleneck=4, scale=2.0), show=False).eval()
    randomise(tuned)
    own, model, images = dict(tuned.trainable()), base_vit(), images_for(base_vit())
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2)
        K, V = (own[f"blocks.{i}.attn.core.extend.{name}"].unflatten(-1, (3, 16)) for name in ("keys", "values"))
        heads = []
        for h in range(3):
            keys = torch.cat([K[:, h].expand(len(x), -1, -1), k[:, :, h]], dim=1)
            values = torch.cat([V[:, h].expand(len(x), -1, -1), v[:, :, h]], dim=1)
            heads.append((q[:, :, h] @ keys.mT / 4).softmax(-1) @ values)
        x = x + block.attn.proj(torch.cat(heads, dim=-1))
        z, key = block.norm2(x), f"blocks.{i}.mlp.parallel"
        inner = torch.relu(z @ own[f"{key}.down.weight"].T + own[f"{key}.down.bias"])
        x = x + block.mlp(z) + 2.0 * (inner @ own[f"{key}.up.weight"].T + own[f"{key}.up.bias"])
    assert torch.allclose(tuned.features(images), model.norm(x)[:, 0], atol=1e-4)


def test_counts_of_mam() -> None:
    assert trained(MAM(length=30, bottleneck=512)) == 10_005_504
    assert trained(MAM()) == 341_088
