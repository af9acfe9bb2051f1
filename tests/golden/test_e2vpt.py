"""E2VPT against its authors' numbers, restated, counted, pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for
from vpeft.methods import E2VPT


def test_equals_the_authors_code() -> None:
    first = "blocks.0.insert_tokens"
    mapping = {
        f"{first}.masks.rho": lambda t: t["transformer.prompt_soft_tokens_mask_cls_token"],
        f"{first}.masks.xi": lambda t: t["transformer.prompt_soft_tokens_pieces_mask_cls_token"],
        f"{first}.tokens": lambda t: t["transformer.prompt_embeddings"],
    }
    for i in (1, 2):
        mapping[f"blocks.{i}.insert_tokens.tokens"] = lambda t, i=i: t["transformer.deep_prompt_embeddings"][i - 1]
    for i in range(3):
        key = f"transformer.encoder.layer.{i}.attn.deep_QKV_embeddings"
        mapping[f"blocks.{i}.attn.core.extend.Z"] = lambda t, key=key: t[key]
    # rho's gradient is about 3e-5, which comes from the eps of the norms alone
    faint = {f"{first}.masks.rho": 1e-6}
    tuned = reproduce("e2vpt", "vit", E2VPT(tokens=5, kv_tokens=4), mapping, faint=faint)
    assert not tuned.plan().mergeable


def by_hand(own: dict[str, Tensor], images: Tensor, p: int, rho: Tensor, xi: Tensor) -> Tensor:
    model = base_vit()
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    for i, block in enumerate(model.blocks):
        channel = torch.arange(48) % xi.shape[1]
        tokens = own[f"blocks.{i}.insert_tokens.tokens"] * xi[:, channel] * rho[:, None]
        x = torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2)
        heads = []
        for h in range(3):
            Z = own[f"blocks.{i}.attn.core.extend.Z"][h].expand(len(x), -1, -1)
            keys, values = torch.cat([Z, k[:, :, h]], dim=1), torch.cat([Z, v[:, :, h]], dim=1)
            heads.append((q[:, :, h] @ keys.mT / 4).softmax(-1) @ values)
        x = x + block.attn.proj(torch.cat(heads, dim=-1))
        x = x + block.mlp(block.norm2(x))
        x = torch.cat([x[:, :1], x[:, 1 + p :]], dim=1)
    return model.norm(x)[:, 0]


def test_equals_a_restatement_and_prunes() -> None:
    method = E2VPT(tokens=6, kv_tokens=3, segments=8)
    tuned = vpeft.tune(base_vit(), method, num_classes=4, show=False).eval()
    randomise(tuned)
    own, x = dict(tuned.trainable()), images_for(base_vit())
    rho, xi = own["blocks.0.insert_tokens.masks.rho"], own["blocks.0.insert_tokens.masks.xi"]
    assert torch.allclose(tuned.features(x), by_hand(own, x, 6, rho, xi), atol=1e-4)

    labels = torch.tensor([1, 3])
    rows = [(x[:1], labels[:1]), (x[1:], labels[1:])]
    loss = sum(F.cross_entropy(tuned(images), label) for images, label in rows) / 2
    slope_rho, slope_xi = torch.autograd.grad(loss, (rho, xi))
    left = method.pruned(tuned, rows, tokens=0.5, segments=0.9)
    assert set(left.zero_tokens) == set(slope_rho.argsort()[:3].tolist())
    assert [set(row) for row in left.zero_segments] == [set(row) for row in slope_xi.argsort(1)[:, :4].tolist()]

    again = vpeft.tune(base_vit(), left, show=False).eval()
    randomise(again)
    rho, xi = torch.ones(6), torch.ones(6, 8)
    rho[list(left.zero_tokens)] = 0.0
    for token, row in enumerate(left.zero_segments):
        xi[token, list(row)] = 0.0
    own = dict(again.trainable())
    assert not any("masks" in key for key in own)
    assert torch.allclose(again.features(x), by_hand(own, x, 6, rho, xi), atol=1e-4)


def test_pruning_keeps_some_and_needs_masks() -> None:
    x, method = images_for(base_vit()), E2VPT(tokens=3, kv_tokens=1)
    tuned = vpeft.tune(base_vit(), method, num_classes=2, show=False)
    left = method.pruned(tuned, [(x, torch.tensor([0, 1]))], tokens=1.0, segments=1.0)
    assert len(left.zero_tokens) == 2 and {len(row) for row in left.zero_segments} == {12}
    with pytest.raises(vpeft.VpeftError, match="masks=True first"):
        left.pruned(tuned, [], 0.5, 0.5)
    with pytest.raises(vpeft.VpeftError, match="needs labelled images"):
        method.pruned(tuned, [], 0.5, 0.5)
    with pytest.raises(vpeft.VpeftError, match="give masks=False"):
        vpeft.tune(base_vit(), E2VPT(zero_tokens=(1,)), show=False)


def test_counts_and_starts() -> None:
    assert trained(E2VPT(tokens=10, kv_tokens=5)) == 9216 * 15 + 10 + 160
    assert trained(E2VPT(tokens=10, kv_tokens=5, masks=False)) == 9216 * 15
    tuned = vpeft.tune(base_vit(), E2VPT(tokens=10, kv_tokens=6), show=False)
    Z = torch.cat([p.flatten() for key, p in tuned.trainable() if key.endswith(".Z")])
    bound = (6 / (6 * 16)) ** 0.5  # gain sqrt(2), fan in n d
    assert 0.95 * bound < Z.abs().max() <= bound
