"""Sparse-Tuning restated with tokens that leave in the middle of a block, counted; where it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.methods import SparseTuning


def by_hand(model, own, images, locations, keep, fuse=True, embeddings=True):  # type: ignore[no-untyped-def]
    """As the authors' blocks do it: the second half of a block sees what is left."""

    def adapter(number, x):  # type: ignore[no-untyped-def]
        def linear(name, y):  # type: ignore[no-untyped-def]
            at = f"blocks.{number}.mlp_branch.input.tap{'_2' if number in locations else ''}.{name}"
            return F.linear(y, own[f"{at}.weight"], own[f"{at}.bias"])

        a = linear("down1", x).relu()
        z = linear("down2", a)
        return linear("up2", linear("down3", torch.cat([z, linear("up1", z)], dim=2)) + a)

    depth, width = len(model.blocks), model.embed_dim
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    again = [x] if embeddings else []
    for i, block in enumerate(model.blocks):
        q, k, v = (p.transpose(1, 2) for p in block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2))
        weights = (q @ k.mT / 4).softmax(-1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        if i in locations:
            seen = weights[:, :, 0, 1:].mean(1)
            count = -int(-(keep * seen.shape[1]) // 1)
            rows = []
            for one, a in zip(x, seen, strict=True):
                order = a.argsort(descending=True)
                stay, go = order[:count] + 1, order[count:] + 1
                left = [one[:1], one[stay]] + ([(a[go - 1, None] * one[go]).sum(0, keepdim=True)] if fuse else [])
                rows.append(torch.cat(left))
            x, again = torch.stack(rows), []
        o = adapter(i, x)
        x = x + block.mlp(block.norm2(x)) + o
        if i < depth - 1:
            again.append(o)
        if again and (i == depth - 1 or i + 1 in locations):
            x = x + sum(again)
    assert width == x.shape[-1]
    return x


@pytest.mark.parametrize(
    ("depth", "fields", "locations"),
    [
        (4, {}, (1, 2)),
        (5, {"locations": (2, 4), "keep": 0.5}, (2, 4)),
        (4, {"locations": (2,), "fuse": False, "embeddings": False}, (2,)),
    ],
)
def test_equals_a_restatement_with_its_gradients(depth: int, fields: dict[str, object], locations: tuple[int]) -> None:
    model = tiny_vit(depth=depth)
    tuned = vpeft.tune(copy.deepcopy(model), SparseTuning(bottleneck=6, **fields), show=False).eval()
    randomise(tuned, 0.1)
    own = {key: p.detach().clone().requires_grad_() for key, p in tuned.trainable()}
    images = images_for(model, 3)
    keep, fuse, more = fields.get("keep", 0.7), fields.get("fuse", True), fields.get("embeddings", True)
    x = by_hand(model, own, images, locations, keep, fuse, more)
    expected, found = model.norm(x)[:, 0], tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5)
    direction = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(parameter.grad, own[key].grad, atol=1e-4 * float(own[key].grad.abs().max() + 1)), key


def test_fewer_tokens_reach_the_end() -> None:
    tuned = vpeft.tune(tiny_vit(depth=4), SparseTuning(bottleneck=4), show=False)
    lengths: list[int] = []
    for block in tuned.backbone.blocks:
        block.register_forward_hook(lambda _m, _a, out: lengths.append(out.shape[1]))
    tuned.features(images_for(tiny_vit()))
    assert lengths == [17, 1 + 12 + 1, 1 + 10 + 1, 12]  # ceil(0.7 * 16), ceil(0.7 * 13), and the new ones


def test_counts_and_refuses() -> None:
    assert trained(SparseTuning()) == 1_314_432
    with pytest.raises(vpeft.MissingPlace, match="has no class token"):
        vpeft.tune(tiny_swin(), SparseTuning(), show=False)
    with pytest.raises(vpeft.MissingPlace, match="can leave in the blocks 1 to 2"):
        vpeft.tune(base_vit(), SparseTuning(locations=(0, 1)), show=False)
