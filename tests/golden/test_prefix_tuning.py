"""Prefix-tuning against DualPrompt's numbers, restatements, and the collapsed form."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

import vpeft
from tests.golden.parity import reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import Method, PrefixTuning


def test_equals_the_authors_code() -> None:
    mapping = {}
    for i in range(3):
        for part, name in enumerate(("keys", "values")):
            mapping[f"blocks.{i}.attn.core.extend.{name}"] = lambda t, i=i, part=part: t["g_prompt"][i, part]
    reproduce("prefix_tuning", "vit", PrefixTuning(length=4, init="uniform"), mapping)


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("fields", [{"form": "mlp", "hidden": 5}, {"init": "lae"}, {}])
def test_equals_a_restatement_in_shifted_windows(fields: dict[str, object], compensate: bool) -> None:
    plain = tiny_swin()
    tuned = vpeft.tune(copy.deepcopy(plain), PrefixTuning(length=3, compensate=compensate, **fields), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)
    layer = tuned.adapter().get_submodule("blocks.1.attn.core.extend")
    if "form" in fields:
        made = torch.tanh(layer.table @ layer.first.weight.T + layer.first.bias) @ layer.second.weight.T
        keys, values = (made + layer.second.bias).split(24, dim=1)
    else:
        first, second = (layer.key_factor, layer.value_factor) if "init" in fields else (1.0, 1.0)
        keys, values = layer.keys * first, layer.values * second
    block = plain.layers[0].blocks[1]
    attn, windows = block.attn, torch.randn(32, 16, 24)  # two images of 16 windows
    q, k, v = attn.qkv(windows).reshape(32, 16, 3, 2, 12).permute(2, 0, 3, 1, 4)
    heads = []
    for h in range(2):
        own = q[:, h] @ k[:, h].mT * 12**-0.5 + attn._get_rel_pos_bias().reshape(2, 16, 16)[h]
        own = own + block.attn_mask.repeat(2, 1, 1)
        new = q[:, h] @ keys[:, 12 * h : 12 * h + 12].T * 12**-0.5
        both = torch.cat([own, new], dim=-1).softmax(dim=-1)
        on_own, on_new = both.split([16, 3], dim=-1)
        if compensate:
            on_new = on_new / on_new.sum(-1, keepdim=True)
        heads.append(on_own @ v[:, h] + on_new @ values[:, 12 * h : 12 * h + 12])
    expected = attn.proj(torch.cat(heads, dim=-1))
    found = tuned.backbone.layers[0].blocks[1].attn(windows, block.attn_mask)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("fields", [{"form": "mlp", "hidden": 16}, {"init": "lae", "compensate": True}])
@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_collapses_exactly(make: type[torch.nn.Module], fields: dict[str, object]) -> None:
    plain = make()
    images = images_for(plain)
    method = PrefixTuning(length=3, blocks=(0, 1), **fields)
    tuned = vpeft.tune(copy.deepcopy(plain), method, num_classes=4, show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)
    direct, state = method.collapse(tuned)
    again = vpeft.tune(plain, direct, num_classes=4, show=False)
    again.load_adapter_state(state)
    assert torch.equal(again(images), tuned(images))


@pytest.mark.parametrize(
    ("model", "method", "count"),
    [
        ("vit_base_patch16_224", PrefixTuning(length=20), 368_640),
        ("vit_base_patch16_224", PrefixTuning(length=10, init="lae", blocks=(0, 1, 2, 3, 4)), 5 * (15_360 + 2)),
        (
            "vit_base_patch16_224",
            PrefixTuning(length=16, form="mlp", hidden=64),
            12 * (768 * 16 + 768 * 64 + 64 + 2 * 768 * 64 + 2 * 768),
        ),
        ("swin_base_patch4_window7_224", PrefixTuning(length=20), 2 * 20 * 12_032),
    ],
)
def test_counts(model: str, method: Method, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, method, verify=False, show=False).plan().trainable == count


@pytest.mark.parametrize(("init", "low", "high"), [("vpt", -0.158, 0.158), ("uniform", -1, 1), ("lae", 0, 0.01)])
def test_starts_in_its_bounds(init: str, low: float, high: float) -> None:
    tuned = vpeft.tune(tiny_vit(), PrefixTuning(length=100, init=init), show=False)
    values = torch.cat([p.flatten() for key, p in tuned.trainable() if "factor" not in key])
    assert low - 1e-3 <= values.min() <= low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) <= values.max() <= high + 1e-3


def test_two_prefixes_each_compensate_their_own_columns() -> None:
    plain = tiny_vit()
    methods = (PrefixTuning(length=2, compensate=True), PrefixTuning(length=3, compensate=True))
    tuned = vpeft.tune(plain, *methods, show=False)
    first, second = (tuned.adapter().get_submodule(f"blocks.0.attn.core.{k}") for k in ("extend", "extend_2"))
    q = torch.randn(1, 3, 17, 16)
    _, k, _ = second(*first(q, q, q))
    weights = (q @ k.mT / 4).softmax(-1)  # scaled as attention is: no frozen key takes all of it
    changed = second.weights(first.weights(weights))
    assert torch.allclose(changed[..., :3].sum(-1), torch.ones(()))
    assert torch.allclose(changed[..., 3:5].sum(-1), torch.ones(()))
    assert torch.equal(changed[..., 5:], weights[..., 5:])


def test_a_dominant_frozen_key_leaves_compensation_finite() -> None:
    plain = tiny_vit()
    with torch.no_grad():
        plain.blocks[1].attn.qkv.weight[:96] *= 8  # queries and keys: the softmax of the prefix underflows to zero
    tuned = vpeft.tune(plain, PrefixTuning(init="lae", compensate=True), show=False)
    features = tuned.features(images_for(plain))
    features.sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in tuned.trainable())


def test_keys_and_values_have_a_factor_each() -> None:
    tuned = vpeft.tune(tiny_vit(), PrefixTuning(init="lae", blocks=(0,)), show=False)
    layer = tuned.adapter().get_submodule("blocks.0.attn.core.extend")
    with torch.no_grad():
        layer.key_factor.fill_(2.0)
        layer.value_factor.fill_(-3.0)
    keys, values = layer.rows()
    assert torch.equal(keys, 2.0 * layer.keys) and torch.equal(values, -3.0 * layer.values)


def test_needs_attention() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"attn\.core"):
        vpeft.tune(tiny_convnext(), PrefixTuning())
