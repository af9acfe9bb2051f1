"""BAPAT and PATT against the authors' numbers and restatements."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.parity import reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import BAPAT, PATT, Method, VPETLUnified


def test_equals_the_authors_code() -> None:
    mapping = {}
    silent = [f"blocks.{i}.attn.k.parallel.bias" for i in range(3)]  # the same for every key: softmax does not see it
    for i in range(3):
        ours, theirs = f"blocks.{i}.attn", f"blocks.{i}.attn.qkv_adapter"
        for kind in ("weight", "bias"):
            mapping[f"{ours}.k.input.tap.{kind}"] = lambda t, n=f"{theirs}.0.{kind}": t[n]
            mapping[f"{ours}.k.parallel.{kind}"] = lambda t, n=f"{theirs}.2.{kind}": t[n][:48]
            mapping[f"{ours}.v.parallel.{kind}"] = lambda t, n=f"{theirs}.2.{kind}": t[n][48:]
            for half in ("down", "up"):
                name = f"blocks.{i}.mlp.adaptmlp.{half}_proj.{kind}"
                mapping[f"blocks.{i}.mlp.parallel.{half}.{kind}"] = lambda t, n=name: t[n]
    reproduce("bapat", "vit", BAPAT(hidden=8, scale=0.5, bottleneck=8), mapping, silent)


@pytest.mark.parametrize("mode", ["kv", "qv", "qk", "qkv"])
def test_patt_equals_a_restatement_in_shifted_windows(mode: str) -> None:
    plain = tiny_swin()
    tuned = vpeft.tune(copy.deepcopy(plain), PATT(hidden=5, scale=0.7, mode=mode), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)
    at = tuned.adapter().get_submodule("blocks.1.attn")
    block = plain.layers[0].blocks[1]
    attn, u = block.attn, torch.randn(32, 16, 24)
    down = at.get_submodule(f"{mode[0]}.input.tap")
    hidden = torch.tanh(u @ down.weight.T + down.bias)
    made = dict(zip("qkv", (u @ attn.qkv.weight.T + attn.qkv.bias).split(24, dim=-1), strict=True))
    for letter in mode:
        up = at.get_submodule(f"{letter}.parallel")
        made[letter] = made[letter] + 0.7 * (hidden @ up.weight.T + up.bias)
    q, k, v = (made[letter].reshape(32, 16, 2, 12).transpose(1, 2) for letter in "qkv")
    scores = q @ k.mT * 12**-0.5 + attn._get_rel_pos_bias() + block.attn_mask.repeat(2, 1, 1)[:, None]
    expected = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(32, 16, 24))
    assert torch.allclose(tuned.backbone.layers[0].blocks[1].attn(u, block.attn_mask), expected, atol=2e-5)


@pytest.mark.parametrize(("method", "normed"), [(BAPAT(hidden=4), True), (VPETLUnified(hidden=4), False)])
def test_what_the_adapter_reads(method: Method, normed: bool) -> None:
    plain = tiny_vit(init_values=0.3)
    tuned = vpeft.tune(copy.deepcopy(plain), method, show=False)
    with torch.no_grad():
        for name, parameter in tuned.trainable():
            if "mlp" in name:
                torch.nn.init.normal_(parameter)
            else:
                parameter.zero_()
    images = images_for(plain)
    x = plain._pos_embed(plain.patch_embed(images))
    for i, block in enumerate(plain.blocks):
        x = x + block.ls1(block.attn(block.norm1(x)))
        site = tuned.adapter().get_submodule(f"blocks.{i}.{'mlp' if normed else 'mlp_branch'}.parallel")
        w = block.norm2(x)
        read = w if normed else x
        side = 0.1 * (F.relu(read @ site.down.weight.T + site.down.bias) @ site.up.weight.T + site.up.bias)
        x = x + block.ls2(block.mlp(w) + side) if normed else x + block.ls2(block.mlp(w)) + side
    assert torch.allclose(tuned.features(images), plain.norm(x)[:, 0], atol=2e-5)


def test_the_parts_together_are_the_unified_method() -> None:
    plain = tiny_swin()
    method = VPETLUnified(hidden=4, mode="qkv")
    ours = vpeft.tune(copy.deepcopy(plain), method, show=False)
    parts = vpeft.tune(copy.deepcopy(plain), *method.parts, show=False)
    parts.load_adapter_state(ours.adapter_state())
    images = images_for(plain)
    assert torch.equal(ours.features(images), parts.features(images))


WIDTHS = 2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024


@pytest.mark.parametrize(
    ("model", "method", "count"),
    [
        ("vit_base_patch16_224", PATT(), 3_558_912),
        ("vit_base_patch16_224", BAPAT(), 3_558_912 + 1_189_632),
        ("vit_base_patch16_224", VPETLUnified(hidden=32), 12 * (3 * 768 * 32 + 32 + 1536) + 1_189_632),
        ("swin_base_patch4_window7_224", BAPAT(), 4_647_424 + 1_553_664),
        ("swin_base_patch4_window7_224", PATT(mode="qkv"), 24 * 128 + WIDTHS * (4 * 128 + 3)),
    ],
)
def test_counts(model: str, method: Method, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, method, verify=False, show=False).plan().trainable == count


@pytest.mark.parametrize("method", [PATT(), BAPAT(), VPETLUnified()])
def test_needs_attention(method: Method) -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"attn\.q"):
        vpeft.tune(tiny_convnext(), method)
