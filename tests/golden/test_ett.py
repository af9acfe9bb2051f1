"""eTT restated: prototypes of the support, prefixes of one table in all blocks, offsets, the map, the distance."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.golden.test_l2p import sequence
from tests.models import images_for, tiny_swin
from vpeft.method import BadField
from vpeft.methods import ETT

METHOD = ETT(ways=3, hidden=7, project=5, distil=0.4)
TABLE = "blocks.0.before.table"


def test_the_table_starts_with_the_prototypes_of_the_support() -> None:
    tuned, model, images = vpeft.tune(base_vit(), METHOD, show=False), base_vit(), images_for(base_vit(), 5)
    numbers = torch.tensor([2, 0, 2, 0, 0])
    before = tuned.adapter_state()[f"{TABLE}.rows"].clone()
    tuned.prepare([(images[:2], numbers[:2]), (images[2:], numbers[2:])])
    with torch.no_grad():
        x = tokens = sequence(model, images)
        for block in model.blocks[:2]:
            x = block(x)
        attn = model.blocks[2].attn
        q, k, _ = (
            part.transpose(1, 2) for part in attn.qkv(model.blocks[2].norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2)
        )
        scores = (q[:, :, 0, None] * k[:, :, 1:]).sum(-1).mean(1) / 4
        looked = torch.einsum("bn,bnd->bd", scores.softmax(1), tokens[:, 1:])
    found = tuned.adapter_state()[f"{TABLE}.rows"]
    for label in (0, 2):
        assert torch.allclose(found[label], looked[numbers == label].mean(0), atol=1e-5)
    assert torch.equal(found[1], before[1])  # no image of this class
    assert torch.equal(found, tuned.adapter_state()[f"{TABLE}.prototypes"])
    tuned.prepare([(images * 2, numbers)])  # a loaded or resumed adapter keeps its own
    assert torch.equal(found, tuned.adapter_state()[f"{TABLE}.rows"])
    with pytest.raises(BadField, match=r"ett\(ways=5\)"):
        vpeft.tune(base_vit(), METHOD, show=False).prepare([(images, torch.tensor([0, 1, 2, 3, 4]))])


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), METHOD, show=False).eval()
    randomise(tuned, 0.4)
    own, model, images = dict(tuned.trainable()), base_vit(), images_for(base_vit(), 2)
    inner = torch.tanh(F.linear(own[f"{TABLE}.rows"], own[f"{TABLE}.first.weight"], own[f"{TABLE}.first.bias"]))
    made = F.linear(inner, own[f"{TABLE}.second.weight"], own[f"{TABLE}.second.bias"]).reshape(3, 3, 2, 3, 16)
    x = sequence(model, images)
    for number, block in enumerate(model.blocks):
        q, k, v = (part.transpose(1, 2) for part in block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2))
        keys, values = (made[:, number, which].transpose(0, 1).expand(2, -1, -1, -1) for which in (0, 1))
        k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        x = x + block.attn.proj(((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + own[f"blocks.{number}.attn_branch.after.shift"]
        x = x + block.mlp(block.norm2(x)) + own[f"blocks.{number}.mlp_branch.after.shift"]
    expected = model.norm(x)[:, 0] @ own["outlet.after.weight"].T
    assert torch.allclose(tuned.features(images), expected, atol=1e-5, rtol=1e-5)


def test_the_distance_and_its_centre() -> None:
    tuned = vpeft.tune(base_vit(), METHOD, show=False)
    randomise(tuned, 0.4)
    state = {name: value.clone() for name, value in tuned.adapter_state().items()}
    projector, centre = state[f"{TABLE}.projector.weight"], torch.zeros(5)
    tuned.train()
    for _ in range(2):
        student = F.normalize(state[f"{TABLE}.rows"], dim=1) @ projector.T
        teacher = ((F.normalize(state[f"{TABLE}.prototypes"], dim=1) @ projector.T - centre) / 0.04).softmax(1)
        expected = -(teacher * (student / 0.1).log_softmax(1)).sum(1).mean()
        found = tuned.penalty()
        assert found is not None and torch.allclose(found, 0.4 * expected, rtol=1e-5)
        centre = 0.9 * centre + 0.1 * teacher.mean(0)
    assert torch.allclose(tuned.adapter_state()[f"{TABLE}.centre"], centre, atol=1e-6)


def test_counts_and_refuses() -> None:
    small = "vit_small_patch16_224"
    assert trained(ETT(), model=small) == 5 * 384 + 1_852_608 + 9_216 + 147_456 + 64 * 384
    with pytest.raises(vpeft.MissingPlace, match="not one sequence with a class token"):
        vpeft.tune(tiny_swin(), ETT(), show=False)
