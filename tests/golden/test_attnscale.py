"""AttnScale and DRA against restatements, their counts, DRA's merge."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import vpeft
from tests.models import FAMILIES, images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import DRA, AttnScale, LoRA, Method, PrefixTuning, VPTDeep


@pytest.mark.parametrize("share", ["none", "heads", "layers+heads"])
@pytest.mark.parametrize("position", ["probs", "logits"])
def test_equals_a_restatement_on_vit(position: str, share: str) -> None:
    plain = tiny_vit(init_values=0.4)
    tuned = vpeft.tune(copy.deepcopy(plain), AttnScale(position=position, share=share), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)
    images, places = images_for(plain), tuned.adapter()
    x = plain._pos_embed(plain.patch_embed(images))
    for i, block in enumerate(plain.blocks):
        A = places.get_submodule(f"blocks.{i}.attn.core.extend").factors.A
        qkv = block.attn.qkv(block.norm1(x)).reshape(2, 17, 3, 3, 16)
        outs = []
        for h in range(3):
            q, k, v = qkv[:, :, :, h].unbind(2)
            a = A[h if share == "none" else 0]
            S = q @ k.mT / 4
            P = (a * S).softmax(-1) if position == "logits" else a * S.softmax(-1)
            outs.append(P @ v)
        x = x + block.ls1(block.attn.proj(torch.cat(outs, -1)))
        x = x + places.get_submodule(f"blocks.{i}.attn_branch.after").shift
        x = x + block.ls2(block.mlp(block.norm2(x))) + places.get_submodule(f"blocks.{i}.mlp_branch.after").shift
    expected = plain.norm(x)[:, 0]
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)


@pytest.mark.parametrize("position", ["probs", "logits"])
def test_equals_a_restatement_in_shifted_windows(position: str) -> None:
    plain = tiny_swin()
    tuned = vpeft.tune(copy.deepcopy(plain), AttnScale(position=position, with_dra=False), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)
    A = tuned.adapter().get_submodule("blocks.1.attn.core.extend").factors.A
    block, windows = plain.layers[0].blocks[1], torch.randn(32, 16, 24)
    attn = block.attn
    q, k, v = attn.qkv(windows).reshape(32, 16, 3, 2, 12).permute(2, 0, 3, 1, 4)
    S = q @ k.mT * 12**-0.5
    S = S * A if position == "logits" else S
    P = (S + attn._get_rel_pos_bias() + block.attn_mask.repeat(2, 1, 1)[:, None]).softmax(-1)
    P = P if position == "logits" else P * A
    expected = attn.proj((P @ v).transpose(1, 2).reshape(32, 16, 24))
    assert torch.allclose(tuned.backbone.layers[0].blocks[1].attn(windows, block.attn_mask), expected, atol=1e-4)


@pytest.mark.parametrize(
    "other", [VPTDeep(tokens=2), PrefixTuning(length=3), (VPTDeep(tokens=2), PrefixTuning(length=3))]
)
def test_what_others_insert_keeps_the_factor_one(other: Method | tuple[Method, ...]) -> None:
    others = other if isinstance(other, tuple) else (other,)
    plain = tiny_vit()
    tuned = vpeft.tune(plain, AttnScale(with_dra=False), *others, verify=False, show=False)
    layer = tuned.adapter().get_submodule("blocks.1.attn.core.extend")
    torch.nn.init.normal_(layer.factors.A)
    tokens, keys = (2 if isinstance(others[0], VPTDeep) else 0), (3 if isinstance(others[-1], PrefixTuning) else 0)
    seen = layer.weights(torch.ones(1, 3, 17 + tokens, 17 + tokens + keys))[0]
    assert torch.equal(seen[:, 0, keys], layer.factors.A[:, 0, 0])
    assert torch.equal(seen[:, 1 + tokens :, keys + 1 + tokens :], layer.factors.A[:, 1:, 1:])
    assert torch.equal(seen[:, 0, keys + 1 + tokens :], layer.factors.A[:, 0, 1:])
    assert (seen[..., :keys] == 1).all()
    assert (seen[:, 1 : 1 + tokens] == 1).all()
    assert (seen[..., keys + 1 : keys + 1 + tokens] == 1).all()
    assert tuned.features(images_for(tiny_vit())).isfinite().all()


def test_another_image_size_is_refused() -> None:
    model = tiny_vit(dynamic_img_size=True)
    tuned = vpeft.tune(model, AttnScale(), show=False)
    with pytest.raises(vpeft.VpeftError, match="17 tokens"):
        tuned.features(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("model", "method", "count"),
    [
        ("vit_base_patch16_224", DRA(), 18_432),
        ("vit_small_patch16_224", DRA(), 9_216),
        ("vit_base_patch16_224", AttnScale(share="heads", with_dra=False), 465_708),
        ("vit_base_patch16_224", AttnScale(with_dra=False), 5_588_496),
        ("vit_small_patch16_224", AttnScale(with_dra=False), 2_794_248),
        ("vit_small_patch16_224", AttnScale(share="layers+heads"), 38_809 + 9_216),
        ("swin_base_patch4_window7_224", AttnScale(share="heads", with_dra=False), 24 * 49 * 49),
    ],
)
def test_counts(model: str, method: Method, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, method, verify=False, show=False).plan().trainable == count


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("first", [True, False])
def test_dra_folds_into_the_biases(family: str, first: bool) -> None:
    plain = tiny_vit(init_values=0.3) if family == "timm_vit" else FAMILIES[family]()
    images = images_for(plain)
    both = (DRA(), LoRA(rank=2, targets=("fc2",)))
    tuned = vpeft.tune(plain, *(both if first else both[::-1]), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter, std=0.3)
    before = tuned.features(images)
    tuned.merge()
    assert (tuned.features(images) - before).abs().max() <= 1e-5 * before.abs().max().clamp(min=1)
    assert not torch.equal(tuned.features(images), plain.forward_head(plain.forward_features(images)) * 0)
    tuned.unmerge()
    assert torch.equal(tuned.features(images), before)


def test_dra_does_not_fold_past_a_norm_or_a_zero_scale() -> None:
    from timm.models.vision_transformer import ResPostBlock

    assert not vpeft.tune(tiny_vit(block_fn=ResPostBlock), DRA(), show=False).plan().mergeable
    zero = tiny_vit(init_values=0.3)
    nn.init.zeros_(zero.blocks[1].ls2.gamma)
    reasons = {row.place: row.unmergeable for row in vpeft.tune(zero, DRA(), show=False).plan().rows}
    assert reasons.pop("blocks.1.mlp_branch") is not None
    assert not any(reasons.values())


def test_drop_path_does_not_drop_the_offsets() -> None:
    tuned = vpeft.tune(tiny_vit(drop_path_rate=0.5), DRA(), show=False).train()
    block, outs = tuned.backbone.blocks[2], []
    block.drop_path1.drop_prob = 1.0 - 1e-6
    block.drop_path1.register_forward_hook(lambda _m, _a, out: outs.append(out))
    layer = tuned.adapter().get_submodule("blocks.2.attn_branch.after")
    nn.init.normal_(layer.shift)
    tuned.features(images_for(tiny_vit()))
    assert torch.allclose(outs[0], layer.shift.expand_as(outs[0]))


def test_attention_maps_need_attention() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"attn\.core"):
        vpeft.tune(tiny_convnext(), AttnScale())
