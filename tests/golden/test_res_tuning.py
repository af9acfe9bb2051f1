"""Res-Tuning restated and counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import ResTuning


def adapter(own, key, x):  # type: ignore[no-untyped-def]
    w, a, u, b = (own[f"{key}.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias"))
    return F.gelu(x @ w.T + a) @ u.T + b


@pytest.mark.parametrize("form", ["adapter", "prefix", "prompt"])
def test_equals_a_restatement(form: str) -> None:
    tuned = vpeft.tune(base_vit(), ResTuning(attention=form, block="adapter", length=3), show=False)
    randomise(tuned)
    own, changes, plain = dict(tuned.trainable()), {}, base_vit()
    came = {}

    def beside(i):  # type: ignore[no-untyped-def]
        qkv, key = plain.blocks[i].attn.qkv, f"blocks.{i}.attn.parallel"
        W, b = qkv.weight.chunk(3), qkv.bias.chunk(3)

        def change(y, z):  # type: ignore[no-untyped-def]
            if form == "adapter":
                return y + adapter(own, key, z)
            if form == "prefix":
                K, V = own[f"{key}.keys"], own[f"{key}.values"]
            else:
                K, V = (own[f"{key}.rows"] @ W[j].T + b[j] for j in (1, 2))
            q, cut = z @ W[0].T + b[0], [slice(16 * h, 16 * h + 16) for h in range(3)]
            return y + torch.cat([(q[..., c] @ K[:, c].T / 4).softmax(-1) @ V[:, c] for c in cut], dim=-1)

        return change

    for i in range(3):
        changes[f"blocks.{i}.attn"] = beside(i)
        changes[f"blocks.{i}.mlp"] = lambda y, z, i=i: y + adapter(own, f"blocks.{i}.mlp.parallel", z)
        changes[f"blocks.{i}.skip1"] = lambda x, _, i=i: came.update({i: x}) or x
        changes[f"blocks.{i}"] = lambda x, _, i=i: x + adapter(own, f"blocks.{i}.after.tuner", came[i])
    x = images_for(plain)
    assert torch.allclose(tuned.features(x), ViTByHand(plain, changes)(x), atol=1e-4, rtol=1e-4)


def test_counts_and_starts() -> None:
    assert trained(ResTuning()) == 24 * (2 * 768 * 8 + 8 + 768) == 313_536
    assert trained(ResTuning(attention="prefix", mlp="none")) == 12 * 2 * 10 * 768
    assert trained(ResTuning(attention="prompt", mlp="none")) == 12 * 10 * 768
    assert vpeft.tune(base_vit(), ResTuning(start="identity"), show=False).verify().identity
    own = dict(vpeft.tune(base_vit(), ResTuning(), show=False).trainable())
    bound = (6 / (48 + 8)) ** 0.5
    assert 0.9 * bound < own["blocks.0.attn.parallel.up.weight"].abs().max() <= bound
    assert own["blocks.0.attn.parallel.up.bias"].abs().max() < 1e-5
    with pytest.raises(vpeft.VpeftError, match="no tuner left"):
        vpeft.tune(base_vit(), ResTuning(attention="none", mlp="none"), show=False)
