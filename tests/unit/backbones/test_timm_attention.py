"""Functional weights, rotary positions, position biases and cosine attention of timm, against plain restatements.

The weights are read where timm keeps them; nothing here uses a module's forward except `mlp` and `norm` layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.families.timm_attention import MODELS
from tests.models import images_for
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import GPS, SSF, BitFit, LoRA, Method, PrefixTuning, VPTDeep

FUNCTIONAL = ("timm_beit", "timm_eva", "timm_dinov3", "timm_swin_v2")


def made(family: str) -> nn.Module:
    """The family's tiny model, with the same weights at each call."""
    torch.manual_seed(0)
    return MODELS[family]()


def tuned_on(family: str, method: Method) -> TunedModel:
    """The method on the family's tiny model, with every trained tensor moved off its start."""
    tuned = vpeft.tune(made(family), method, verify=False, show=False).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return tuned


def attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(module, "q_bias", None) is not None]


@pytest.mark.parametrize("family", FUNCTIONAL)
def test_lora_changes_the_functional_weight(family: str) -> None:
    """Equal to a twin with W + B A written into the rows by hand; in each attention, where a hook on qkv is deaf."""
    tuned = tuned_on(family, LoRA(rank=2))
    twin = made(family)
    images = images_for(twin)
    plain = twin(images)
    layers = dict(tuned.adapter().named_modules())
    for index, attention in enumerate(attentions(twin)):
        third = attention.qkv.weight.shape[0] // 3
        for at, letter in ((0, "q"), (2, "v")):
            low = layers[f"blocks.{index}.attn.{letter}.parallel"]
            with torch.no_grad():
                attention.qkv.weight[at * third : (at + 1) * third] += low.B @ low.A
    expected, found = twin(images), tuned(images)
    assert (expected - plain).abs().max() > 1e-2
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.allclose(tuned.merge()(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FUNCTIONAL)
def test_ssf_scales_the_bias_too_and_merging_keeps_what_keys_gain(family: str) -> None:
    """s (W x + b) + t, with t for the keys as well, which timm keeps as zeros outside the state dict."""
    tuned = tuned_on(family, SSF())
    images, keys = images_for(tuned.backbone), set(tuned.backbone.state_dict())
    before = tuned(images)
    block = tuned.description.blocks[0].attn
    attention = attentions(tuned.backbone)[0]
    layer = tuned.adapter().get_submodule("blocks.0.attn.qkv.after")
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    scale, shift = layer.affine()
    weight = attention.qkv.weight.clone()
    tuned.merge()
    merged = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    assert torch.allclose(merged, scale * bias + shift, atol=1e-6)
    assert torch.allclose(attention.qkv.weight, scale[:, None] * weight, atol=1e-6)
    assert torch.allclose(tuned(images), before, atol=1e-5, rtol=1e-5)
    assert {key.rpartition(".")[2] for key in set(tuned.backbone.state_dict()) - keys} >= {"k_bias"}
    tuned.unmerge()
    assert set(tuned.backbone.state_dict()) == keys
    assert not attention.k_bias.any()
    assert block.k.biases == block.qkv.biases


@pytest.mark.parametrize("family", FUNCTIONAL)
def test_bitfit_trains_the_biases_of_q_and_v(family: str) -> None:
    """They train under the names of a model with three projections; keys have none."""
    tuned = vpeft.tune(made(family), BitFit(), num_classes=3, verify=False, show=False)
    trained = dict(tuned.trainable())
    tuned(images_for(tuned.backbone)).square().sum().backward()
    for index in range(len(tuned.description.blocks)):
        for letter in "qv":
            assert trained[f"blocks.{index}.attn.{letter}.unfreeze.bias"].grad.any()
        assert f"blocks.{index}.attn.k.unfreeze.bias" not in trained


def test_missing_biases_are_those_of_the_keys() -> None:
    """Of a fused projection that has biases for q and v, `add_missing` gives one to k alone; GPS trains the two."""
    given = vpeft.tune(made("timm_beit"), BitFit(add_missing=True), verify=False, show=False)
    assert [edit.place.name for edit in given.adapter().edits if edit.verb == "after"] == [
        "blocks.0.attn.k",
        "blocks.1.attn.k",
    ]
    sparse = vpeft.tune(made("timm_beit"), GPS(), verify=False, show=False)
    assert {f"blocks.0.attn.{letter}.unfreeze.bias" for letter in "qv"} <= dict(sparse.trainable()).keys()


def turned(attention: nn.Module, x: Tensor, rope: Tensor, still: int) -> Tensor:
    half = getattr(attention, "rotate_half", False)
    return torch.cat([x[:, :, :still], apply_rot_embed_cat(x[:, :, still:], rope, half=half)], dim=2)


def restated(
    attention: nn.Module,
    x: Tensor,
    prefix: tuple[Tensor, Tensor] | None = None,
    rope: Tensor | None = None,
    positions: Tensor | None = None,
    cosine: bool = False,
    inserted: tuple[int, int] = (0, 0),
) -> Tensor:
    """One attention, (B, N, D) -> (B, N, D), with everything written out.

    prefix: keys and values (n, E) before the others. positions: bias (h, M, M) of the M tokens that have a position in
    the model. inserted: how many tokens were inserted, and behind how many others.
    """
    heads, (batch, count, _) = attention.num_heads, x.shape
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    q, k, v = (x @ attention.qkv.weight.T + bias).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
    if rope is not None:
        q, k = (turned(attention, part, rope, count - rope.shape[-2]) for part in (q, k))
    own = torch.zeros(heads, count, count)
    if positions is not None:
        tokens, at = inserted
        kept = torch.tensor([i for i in range(count) if not at <= i < at + tokens])
        own[:, kept[:, None], kept] = positions
    if prefix is not None:
        more = [part.reshape(len(part), heads, -1).transpose(0, 1).expand(batch, -1, -1, -1) for part in prefix]
        k, v = torch.cat([more[0], k], dim=2), torch.cat([more[1], v], dim=2)
        own = F.pad(own, (len(prefix[0]), 0))
    if cosine:
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        scores = q @ k.transpose(-2, -1) * attention.logit_scale.clamp(max=math.log(100.0)).exp()
    else:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    mixed = ((scores + own).softmax(-1) @ v).transpose(1, 2).reshape(batch, count, -1)
    return mixed @ attention.proj.weight.T + attention.proj.bias


def swin_v2_positions(attention: nn.Module) -> Tensor:
    """16 sigmoid(MLP(log-spaced offsets)) for each pair of tokens in the window, (h, A, A)."""
    first, second = attention.cpb_mlp[0], attention.cpb_mlp[2]
    table = F.relu(attention.relative_coords_table @ first.weight.T + first.bias) @ second.weight.T
    return 16 * torch.sigmoid(table.flatten(0, 2)[attention.relative_position_index]).permute(2, 0, 1)


def beit_positions(attention: nn.Module) -> Tensor:
    return attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)


def setting(family: str, model: nn.Module) -> tuple[nn.Module, dict[str, object], dict[str, object]]:
    """The first attention, what timm hands it beside x, and what the restatement needs."""
    attention = attentions(model)[0]
    if family == "timm_beit":
        return attention, {}, {"positions": beit_positions(attention)}
    if family == "timm_swin_v2":
        return attention, {}, {"positions": swin_v2_positions(attention), "cosine": True}
    rope = model.rope.get_embed(shape=(4, 4)) if family == "timm_dinov3" else model.rope.get_embed()
    return attention, {"rope": rope}, {"rope": rope}


@pytest.mark.parametrize("family", FUNCTIONAL)
def test_prefixes_have_no_position(family: str) -> None:
    """[K_p; k], [V_p; v] with bias 0 and no rotation for K_p; in cosine attention K_p is normalised like every key."""
    tuned = tuned_on(family, PrefixTuning(length=3))
    attention, given, stated = setting(family, tuned.backbone)
    x = torch.randn(
        2, 16 + (0 if family == "timm_swin_v2" else tuned.description.facts.prefix_tokens), attention.proj.out_features
    )
    layer = tuned.adapter().get_submodule("blocks.0.attn.core.extend")
    expected = restated(attention, x, prefix=layer.rows(), **stated)  # type: ignore[arg-type]
    assert torch.allclose(attention(x, **given), expected, atol=1e-5, rtol=1e-5)
    with tuned.disable():
        assert torch.allclose(attention(x, **given), restated(attention, x, **stated), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FUNCTIONAL)
def test_inserted_tokens_have_no_position(family: str) -> None:
    """They join behind class token and registers (in windows in front), see all, and are seen by all, with bias 0."""
    tuned = tuned_on(family, VPTDeep(tokens=2))
    attention, given, stated = setting(family, tuned.backbone)
    prefix = tuned.description.facts.prefix_tokens
    x = torch.randn(2, prefix + 2 + 16, attention.proj.out_features)
    expected = restated(attention, x, inserted=(2, prefix), **stated)  # type: ignore[arg-type]
    assert torch.allclose(attention(x, **given), expected, atol=1e-5, rtol=1e-5)


def test_swin_v2_branch_begins_where_the_block_does() -> None:
    """`before` the attention branch changes what the branch reads and leaves the shortcut alone."""
    tuned = tuned_on("timm_swin_v2", Shifted())
    block, layer = tuned.backbone.layers[0].blocks[0], tuned.adapter().get_submodule("blocks.0.attn_branch.before")
    x = torch.randn(2, 8, 8, 24)
    with tuned.disable():
        twin = copy.deepcopy(block)
    y = x + twin.norm1(twin._attn(x + layer.shift))
    rows = y.reshape(2, 64, 24)
    expected = (rows + twin.norm2(twin.mlp(rows))).reshape(2, 8, 8, 24)
    assert torch.allclose(block(x), expected, atol=1e-5, rtol=1e-5)


class Shift(nn.Module):
    """x + t."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Shifted(Method):
    """A shift before the first attention branch."""

    def edits(self, backbone: vpeft.Backbone) -> list[object]:  # type: ignore[override]
        return [backbone.blocks[0].attn_branch.before(Shift(backbone.blocks[0].dim))]


BROKEN: dict[str, Callable[[nn.Module], None]] = {
    "timm_beit": lambda model: setattr(model.blocks[1], "__class__", type("Other", (type(model.blocks[1]),), {})),
    "timm_eva": lambda model: setattr(model.blocks[1], "attn", nn.Identity()),
    "timm_swin_v2": lambda model: setattr(model.layers[1].blocks, "0", nn.Identity()),
}


@pytest.mark.parametrize("family", BROKEN)
def test_unknown_blocks_are_refused_by_name(family: str) -> None:
    model = made(family)
    BROKEN[family](model)
    with pytest.raises(vpeft.VpeftError, match=r"blocks\.\d is a \w+.* describes"):
        vpeft.describe(model)
