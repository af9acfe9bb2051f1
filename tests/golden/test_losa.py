"""LoSA restated and counted; no gradient in the backbone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import LoSA


@pytest.mark.parametrize("token_rank", [None, 3])
def test_equals_a_restatement(token_rank: int | None) -> None:
    tuned = vpeft.tune(base_vit(), LoSA(rank=4, token_rank=token_rank), show=False).eval()
    randomise(tuned, 0.1)
    own, outputs, plain = dict(tuned.trainable()), [], base_vit()
    base = next(iter(own)).split(".channels")[0]

    def mixed(u, key):  # type: ignore[no-untyped-def]
        w, a, v, c = (own[f"{base}.{key}.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias"))
        return F.gelu(u @ w.T + a) @ v.T + c

    changes = {f"blocks.{i}": lambda x, _: outputs.append(x) or x for i in range(3)}
    images = images_for(plain)
    ViTByHand(plain, changes)(images)
    y = outputs[-1]
    for i, b in enumerate(outputs):
        u = b + y
        change = mixed(u, f"channels.{i}")
        if token_rank:
            change = change + mixed((u + change).transpose(1, 2), f"tokens.{i}").transpose(1, 2)
        y = y + change
    assert torch.allclose(tuned.features(images), plain.norm(y)[:, 0], atol=1e-4)
    assert tuned.plan().reach == "none"


def test_counts_starts_and_refuses() -> None:
    assert trained(LoSA()) == 12 * (2 * 768 * 8 + 8 + 768) == 156_768
    assert trained(LoSA(token_rank=8)) == 156_768 + 40_284
    assert trained(LoSA(every=3)) == 156_768 // 3
    for token_rank in (None, 3):
        assert vpeft.tune(base_vit(), LoSA(token_rank=token_rank), show=False).verify().identity
    with pytest.raises(vpeft.MissingPlace, match="needs one width and one grid"):
        vpeft.tune(tiny_swin(), LoSA(), show=False)
