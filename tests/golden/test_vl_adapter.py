"""VL-Adapter restated in plain tensors, and counted on CLIP ViT-B/16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import vpeft
from tests.golden.clip_by_hand import CLIPS, ClipByHand, class_ids, pictures
from tests.golden.counts import trained
from tests.golden.two_towers import on_vit_b_16, require_equal, tuned_with
from vpeft.methods import VLAdapter


@pytest.mark.parametrize("library", CLIPS)
@pytest.mark.parametrize("tower", ["text", "image", "*"])
def test_equals_a_restatement(library: str, tower: str) -> None:
    tuned = tuned_with(CLIPS[library](), {tower: VLAdapter(reduction=4)})
    t, place = dict(tuned.trainable()), "text" if tower == "*" else tower
    assert {name.split(".")[0] for name in t} == {place}

    def adapter(prefix: str):  # type: ignore[no-untyped-def]
        down, up = ((t[f"{prefix}.{name}.weight"], t[f"{prefix}.{name}.bias"]) for name in ("down", "up"))

        def change(x: Tensor, came: Tensor) -> Tensor:
            z = x @ down[0].T + down[1]
            gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
            return x + gelu @ up[0].T + up[1]

        return change

    changes = {
        f"{place}.blocks.{block}.{site}": adapter(f"{place}.blocks.{block}.{site}.after")
        for block in range(3)
        for site in ("attn", "mlp")
    }
    plain = ClipByHand(CLIPS[library](), changes)
    require_equal(tuned, plain.logits(pictures(), class_ids()), tuned(pictures()))


def test_counts_and_starts() -> None:
    # 2 D r + r + D at two sites of each block; BART-base of the paper is 768 wide, r = 96
    assert trained(VLAdapter()) == 12 * 2 * (2 * 768 * 96 + 96 + 768)
    assert on_vit_b_16({"*": VLAdapter()}) == 12 * 2 * (2 * 512 * 64 + 64 + 512)
    assert on_vit_b_16({"*": VLAdapter(norms=True)}) == 12 * 2 * (2 * 512 * 64 + 64 + 512) + 25 * 2 * 512
    published = vpeft.tune(vpeft.create_backbone("pocket_vit"), VLAdapter(start="published"), num_classes=2)
    assert not published.verify().identity
    assert vpeft.tune(vpeft.create_backbone("pocket_vit"), VLAdapter(), num_classes=2).verify().identity
