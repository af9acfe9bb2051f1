"""SynQT against the authors' numbers, the count, and what it keeps in memory."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import vpeft
from tests.golden import parity
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import SynQT


def _names() -> dict[str, str]:
    """Our names to the reference's."""
    names = {"q": "q", "feat_scale": "feat_scale"}
    ends = [f"{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    for kind in ("weight", "bias"):
        names[f"fusion.norm.{kind}"] = f"out_norm.{kind}"
        names[f"fusion.out.{kind}"] = f"head_norm.{kind}"
        names[f"fusion.weigh.{kind}"] = f"out_combine.get_weight.fc1.{kind}"
    names.update({f"fusion.adapter.{end}": f"mlp.mlp.{end}" for end in ends})
    for i in range(3):
        ours, theirs = f"mixers.{i}", f"qsm_block.{i}"
        names.update({f"prompts.{i}.{end}": f"prompt_ffn.{i}.mlp.{end}" for end in ends})
        names.update({f"{ours}.mlp.{end}": f"{theirs}.mlp.mlp.{end}" for end in ends})
        for part, reference in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("proj", "proj")):
            names.update({f"{ours}.{part}.{end}": f"{theirs}.attn.{reference}.mlp.{end}" for end in ends})
        for kind in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                names[f"{ours}.{norm}.{kind}"] = f"{theirs}.{norm}.{kind}"
            for norm in ("q_norm", "kv_norm"):
                names[f"{ours}.{norm}.{kind}"] = f"{theirs}.attn.{norm}.{kind}"
        for scale in ("attn_scale", "ffn_scale"):
            names[f"{ours}.{scale}"] = f"{theirs}.{scale}"
    return {f"outlet.after.{ours}": f"synqt.{theirs}" for ours, theirs in names.items()}


def test_equals_the_authors_code() -> None:
    stored, names = parity.vectors("synqt"), _names()
    method = SynQT(tokens=4, bottleneck=8, inner=4, attn_scale=0.3, feat_scale=0.5, ffn_scale=0.7)
    tuned = vpeft.tune(parity.base_vit(), method, verify=False, show=False).eval()
    ours = dict(tuned.trainable())
    assert set(ours) == set(names)
    with torch.no_grad():
        for key, parameter in ours.items():
            parameter.copy_(stored[f"param/{names[key]}"])
    inputs = load_file(parity.VECTORS / "inputs.safetensors")
    y = tuned.features(inputs["x"])
    assert (y - stored["y"]).abs().max() <= parity.OUTPUT
    (y * inputs["direction_vit"]).sum().backward()
    for key, parameter in ours.items():
        expected = stored[f"grad/{names[key]}"]
        if key.endswith(".k.fc2.bias"):  # zero in exact arithmetic
            assert parameter.grad.abs().max() < 1e-6
            continue
        assert (parameter.grad - expected).abs().max() <= parity.GRADIENT * expected.abs().max(), key


@pytest.mark.parametrize("options", [{"init_values": 0.4}, {"qk_norm": True}, {"qkv_bias": False}])
def test_queries_pass_whatever_the_block_has(options: dict[str, object]) -> None:
    """A query that equals an image token is treated by the block exactly as that token is."""
    model = tiny_vit(**options)
    images = images_for(model)
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(images))
        after = model.blocks[0](x)
        k, v = model.blocks[0].attn.qkv(model.blocks[0].norm1(x)).chunk(3, -1)[1:]
    tuned = vpeft.tune(model, SynQT(tokens=1), show=False).eval()
    path = tuned.adapter().get_submodule("outlet.after").paths[0]
    out, h, change = path(x[:, 3:5], k, v)
    assert torch.allclose(out, after[:, 3:5], atol=1e-5)
    assert torch.allclose(x[:, 3:5] + h + change, out, atol=1e-6)


def test_the_head_norm_starts_as_the_final_norm() -> None:
    model = tiny_vit()
    tuned = vpeft.tune(model, SynQT(), show=False)
    out = tuned.adapter().get_submodule("outlet.after.fusion.out")
    assert torch.equal(out.weight, model.norm.weight)
    assert torch.equal(out.bias, model.norm.bias)
    assert out.weight is not model.norm.weight
    assert (out.eps, model.norm.eps) == (1e-5, 1e-6)


@pytest.mark.parametrize(("tokens", "reference"), [(1, 2_622_866), (4, 2_650_514), (16, 2_761_106)])
def test_count_is_the_derived_one_without_what_is_never_used(tokens: int, reference: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    plan = vpeft.tune(model, SynQT(tokens=tokens), verify=False, show=False).plan()
    assert plan.trainable + 12 * 2 * 768 + 37 == reference
    assert plan.reach == "none"


def test_nothing_of_the_trunk_is_saved_but_keys_and_values() -> None:
    model = tiny_vit()
    images = images_for(model)
    saved = saved_by(vpeft.tune(model, SynQT(), num_classes=3, show=False), images)
    assert sum(saved.within) == 0
    assert saved.beyond == []


def test_the_image_tokens_never_see_the_queries() -> None:
    model = tiny_vit()
    images = images_for(model)
    plain = model(images)
    tuned = vpeft.tune(model, SynQT(), show=False).eval()
    seen: list[torch.Tensor] = []
    handle = model.norm.register_forward_hook(lambda _m, _a, out: seen.append(out))
    tuned.features(images)
    handle.remove()
    assert torch.equal(seen[0][:, 0], plain)


def test_drop_path_of_the_blocks_reaches_the_queries() -> None:
    model = tiny_vit(drop_path_rate=0.9)
    tuned = vpeft.tune(model, SynQT(tokens=1), verify=False, show=False).train()
    path = tuned.adapter().get_submodule("outlet.after").paths[2]
    p, k, v = torch.randn(64, 1, 48), torch.randn(64, 17, 48), torch.randn(64, 17, 48)
    _, h, change = path(p, k, v)
    assert (h.abs().amax((1, 2)) == 0).any()
    assert (change.abs().amax((1, 2)) == 0).any()
    assert isinstance(model.blocks[2].drop_path1, nn.Module)


@pytest.mark.parametrize(("make", "word"), [(tiny_swin, "windows"), (tiny_convnext, "attn.core")])
def test_without_plain_attention_it_is_refused(make: type, word: str) -> None:
    with pytest.raises(vpeft.MissingPlace, match=word):
        vpeft.tune(make(), SynQT(), show=False)
