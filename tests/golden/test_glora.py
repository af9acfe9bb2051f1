"""GLoRA against its authors' numbers, restated, counted and merged."""

from __future__ import annotations

import json

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.methods import GLoRA

# the forms of A, B, C, D, E for the linears of each block, as the vector was made
LAYERS = json.loads("""{
 "blocks.0.attn.qkv": ["vector", "constant", "none", "vector", "none"],
 "blocks.0.attn.proj": ["none", "lora", "vector", "none", "none"],
 "blocks.0.mlp.fc1": ["constant", "vector", "lora", "none", "vector"],
 "blocks.0.mlp.fc2": ["lora", "constant", "vector", "constant", "constant"],
 "blocks.1.attn.qkv": ["constant", "constant", "vector", "vector", "vector"],
 "blocks.1.attn.proj": ["none", "none", "lora", "constant", "vector"],
 "blocks.1.mlp.fc1": ["lora", "vector", "none", "vector", "constant"],
 "blocks.1.mlp.fc2": ["vector", "vector", "lora", "constant", "constant"],
 "blocks.2.attn.qkv": ["constant", "none", "none", "none", "none"],
 "blocks.2.attn.proj": ["lora", "lora", "none", "vector", "vector"],
 "blocks.2.mlp.fc1": ["vector", "lora", "vector", "constant", "constant"],
 "blocks.2.mlp.fc2": ["none", "none", "lora", "none", "none"]
}""")


def test_equals_the_authors_code_and_merges() -> None:
    mapping = {}
    for place, forms in LAYERS.items():
        for letter, form in zip("ABCDE", forms, strict=True):
            ours, outer = f"{place}.parallel.{letter}", f"{place}.{letter}" + ("d" if letter in "ABC" else "")
            if form == "lora":
                mapping[ours] = lambda t, key=outer: t[key]
                mapping[f"{ours}_inner"] = lambda t, key=f"{place}.{letter}u": t[key]
            elif form == "vector":
                mapping[ours] = lambda t, key=outer: t[key] if t[key].dim() == 1 else t[key][:, :1]
            elif form == "constant":
                mapping[ours] = lambda t, key=outer: t[key].flatten()[:1]
    # one number added to every output of fc2 is what the norms take away again: no gradient but by their eps
    faint = {
        f"blocks.{i}.mlp.fc2.parallel.{letter}": far
        for i, letter, far in ((0, "B", 2e-4), (0, "E", 1e-5), (1, "E", 1e-5))
    }
    tuned = reproduce("glora", "vit", GLoRA(rank=4, layers=LAYERS), mapping, faint=faint)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    merged = tuned.merge().features(x)
    assert torch.allclose(merged, before, atol=1e-5)
    assert torch.equal(tuned.unmerge().features(x), before)


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), GLoRA(rank=3), show=False)
    randomise(tuned, 0.3)
    own, changes, plain = dict(tuned.trainable()), {}, base_vit()
    for i in range(3):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            layer, key = plain.get_submodule(f"blocks.{i}.{name}"), f"blocks.{i}.{name}.parallel"
            W, b = layer.weight, layer.bias
            A, B, C = (own[f"{key}.{letter}"] @ own[f"{key}.{letter}_inner"] for letter in "ABC")
            weight = W + W * A + B
            bias = b + b * own[f"{key}.D"] + own[f"{key}.E"] + (W @ C)[:, 0]

            def change(y, x, weight=weight, bias=bias):  # type: ignore[no-untyped-def]
                return x @ weight.T + bias

            changes[f"blocks.{i}.{name.split('.')[1]}"] = change
    x = images_for(plain)
    expected = ViTByHand(plain, changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_counts_and_starts() -> None:
    assert trained(GLoRA()) == 1_603_776
    assert trained(GLoRA(scale_weight="constant", shift_weight="none", shift_input="none", scale_bias="none")) == (
        12 * (4 * 1 + 2304 + 768 + 3072 + 768)
    )
    assert vpeft.tune(base_vit(), GLoRA(), show=False).verify().identity
    plain = vpeft.tune(tiny_vit(qkv_bias=False), GLoRA(targets=("qkv",)), show=False)
    assert not any(key.endswith(".D") for key, _ in plain.trainable())


def test_merges_on_pointwise_convolutions() -> None:
    tuned = vpeft.tune(tiny_convnext(conv_mlp=True), GLoRA(targets=("fc1", "fc2")), show=False)
    randomise(tuned)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-4, rtol=1e-4)
    with pytest.raises(vpeft.MissingPlace, match="convolution of a neighbourhood"):
        vpeft.tune(tiny_convnext(), GLoRA(targets=("conv",)), show=False)
    with pytest.raises(vpeft.VpeftError, match=r"names blocks\.9"):
        vpeft.tune(base_vit(), GLoRA(layers={"blocks.9.mlp.fc1": ("none",) * 5}), show=False)
