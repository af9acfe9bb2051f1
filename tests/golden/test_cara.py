"""CaRA restated with dense tensors, counted and merged."""

from __future__ import annotations

import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import CaRA

D, HEADS = 48, 3


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), CaRA(rank=4, scale=0.7), show=False).eval()
    randomise(tuned, 0.3)
    own, plain, changes = dict(tuned.trainable()), base_vit(), {}
    heads, others = "blocks.0.attn.q.parallel.modes", "blocks.0.attn.proj.parallel.modes"
    A1, A2, A3, A4 = (own[f"{heads}.factors.{i}"] for i in range(4))
    P1, P2, P3 = (own[f"{others}.factors.{i}"] for i in range(3))
    assert (A1.shape, A3.shape, A4.shape, P1.shape) == ((9, 4), (HEADS, 4), (D // HEADS, 4), (27, 4))
    attention = torch.einsum("r,jr,ir,hr,er->jihe", own[f"{heads}.weight"], A1, A2, A3, A4).reshape(9, D, D)
    rest = torch.einsum("r,jr,or,ir->joi", own[f"{others}.weight"], P1, P2, P3)
    c = {
        n: own[f"blocks.0.{p}.parallel.shift.shift"]
        for n, p in (("proj", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2"))
    }
    for i in range(3):
        qkv = torch.cat(list(attention[3 * i : 3 * i + 3]), dim=1)  # (in, 3 D)
        up = rest[9 * i + 1 : 9 * i + 5].reshape(4 * D, D)
        down = rest[9 * i + 5 : 9 * i + 9].reshape(4 * D, D)
        proj = rest[9 * i]
        changes[f"blocks.{i}.qkv"] = lambda y, x, w=qkv: y + 0.7 * x @ w
        changes[f"blocks.{i}.proj"] = lambda y, x, w=proj: y + 0.7 * (x @ w.T + c["proj"])
        changes[f"blocks.{i}.fc1"] = lambda y, x, w=up: y + 0.7 * (x @ w.T + c["fc1"])
        changes[f"blocks.{i}.fc2"] = lambda y, x, w=down: y + 0.7 * (x @ w + c["fc2"])
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    names, parameters = zip(*own.items(), strict=True)
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-5)
    for name, a, b in zip(names, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3), name
    assert torch.allclose(tuned.merge().features(images), expected, atol=1e-4)


def test_counts_and_starts() -> None:
    # two tensors of 3 L + D + H + D / H and 9 L + 2 D rows of R numbers, the weights of both, three biases
    assert trained(CaRA()) == 32 * (36 + 768 + 12 + 64 + 108 + 2 * 768 + 2) + 768 * 6 == 85_440
    assert trained(CaRA(targets=("q", "v"))) == 32 * (24 + 768 + 12 + 64 + 1)
    assert vpeft.tune(base_vit(), CaRA(mean=0.9, std=0.1), show=False).verify().identity


def test_dropout_hits_entries_of_the_change() -> None:
    tuned = vpeft.tune(base_vit(), CaRA(rank=4, dropout=0.5, targets=("proj",)), show=False)
    randomise(tuned)
    images = images_for(base_vit())
    torch.manual_seed(0)
    assert not torch.allclose(tuned.train()(images), tuned.eval()(images))


def test_each_stage_has_tensors_of_its_own() -> None:
    tuned = vpeft.tune(tiny_swin(), CaRA(rank=2), show=False)
    modes = {id(e.layer.modes): e.layer.modes for e in tuned.adapter().edits}
    assert sorted(tuple(len(f) for f in one.factors) for one in modes.values()) == [
        (6, 24, 2, 12),
        (6, 48, 4, 12),
        (18, 24, 24),
        (18, 48, 48),
    ]
