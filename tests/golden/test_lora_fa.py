"""LoRA-FA restated, counted, merged, saved; what it keeps for the backward pass."""

from __future__ import annotations

from pathlib import Path

import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import LoRAFA

ALL = ("q", "k", "v", "proj", "fc1", "fc2")


def test_equals_a_restatement_merges_and_reloads(tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), LoRAFA(rank=3, alpha=6, targets=("qkv", "fc2")), num_classes=2, show=False)
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    assert all(key.endswith(".B") or key.startswith("head") for key in own)
    for i in range(3):
        for name in ("attn.qkv", "mlp.fc2"):
            key = f"blocks.{i}.{name}.parallel"
            delta = 2.0 * own[f"{key}.B"] @ tuned.adapter().get_submodule(key).A
            changes[f"blocks.{i}.{name.split('.')[1]}"] = lambda y, x, delta=delta: y + x @ delta.T
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "a.safetensors", labels=["a", "b"]))
    assert torch.equal(again.features(x), tuned.features(x))
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_counts_and_starts() -> None:
    assert trained(LoRAFA()) == 147_456
    assert trained(LoRAFA(targets=ALL)) == 663_552
    assert vpeft.tune(base_vit(), LoRAFA(), show=False).verify().identity


def test_keeps_the_small_product_alone() -> None:
    layer = vpeft.tune(base_vit(), LoRAFA(rank=2), show=False).adapter().get_submodule("blocks.0.attn.q.parallel")
    x, kept = torch.randn(2, 17, 48, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x * 1.0)
    assert not any({17, 34} & {*shape} and 48 in shape for shape in kept), kept
