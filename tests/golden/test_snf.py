"""SNF: the flows restated, counts, the penalty."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import SNF


@pytest.mark.parametrize("length", [0, 1, 4])
def test_equals_a_restatement(length: int) -> None:
    tuned = vpeft.tune(base_vit(), SNF(length=length), show=False)
    randomise(tuned)
    values, changes = dict(tuned.trainable()), {}
    for block in range(3):
        for skip in ("skip1", "skip2"):
            own = {k.split("replace.")[1]: p for k, p in values.items() if k.startswith(f"blocks.{block}.{skip}.")}

            def flow(z, _, own=own):  # type: ignore[no-untyped-def]
                z = own["mu"] + torch.exp(own["rho"]) * z
                for i in range(length):
                    inner = (z * own["w"][i]).sum(-1, keepdim=True) + own["b"][i]
                    z = z + own["u"][i] * torch.tanh(inner)
                return z

            changes[f"blocks.{block}.{skip}"] = flow
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


@pytest.mark.parametrize(("length", "count"), [(0, 36_864), (1, 73_752), (4, 184_416), (6, 258_192), (16, 627_072)])
def test_counts(length: int, count: int) -> None:
    assert trained(SNF(length=length)) == count


def test_the_branch_reads_what_the_flow_has_not_touched_and_keeps_its_layer_scale() -> None:
    tuned = vpeft.tune(tiny_vit(init_values=0.3), SNF(), show=False)
    randomise(tuned)
    block, x = tuned.backbone.blocks[0], torch.randn(2, 17, 48)
    flows = [tuned.adapter().get_submodule(f"blocks.0.{skip}.replace") for skip in ("skip1", "skip2")]
    with torch.no_grad():
        h = flows[0].mu + flows[0].rho.exp() * x + block.ls1(block.attn(block.norm1(x)))
        h = flows[1].mu + flows[1].rho.exp() * h + block.ls2(block.mlp(block.norm2(h)))
        assert torch.allclose(block(x), h, atol=1e-5)


def test_starts() -> None:
    x = images_for(base_vit())
    assert torch.allclose(vpeft.tune(base_vit(), SNF(), show=False).features(x), base_vit()(x), atol=1e-6)
    near = vpeft.tune(base_vit(), SNF(length=16), show=False)
    assert not torch.equal(near.features(x), base_vit()(x))
    assert all(float(p.detach().abs().max()) <= 0.01 for _, p in near.trainable())


def test_the_penalty_is_the_positive_part_of_the_sum_of_rho() -> None:
    assert vpeft.tune(base_vit(), SNF(), show=False).penalty() is None
    tuned = vpeft.tune(base_vit(), SNF(information=0.5), show=False)
    values = dict(tuned.trainable())
    with torch.no_grad():
        values["blocks.0.skip1.replace.rho"].fill_(0.25)
        values["blocks.1.skip2.replace.rho"].fill_(-1.0)
    assert float(tuned.penalty().detach()) == pytest.approx(0.5 * 0.25 * 48)


@pytest.mark.parametrize("make", [tiny_swin, tiny_convnext])
def test_other_families(make) -> None:  # type: ignore[no-untyped-def]
    tuned = vpeft.tune(make(), SNF(length=2), show=False)
    skips = {name.split(".")[2] for name, _ in tuned.trainable()}
    assert skips == ({"skip1", "skip2"} if make is tiny_swin else {"skip2"})
