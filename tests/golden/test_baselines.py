"""Linear probe, MLP head, partial-k and full fine-tuning: what trains, how much, and what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import VIT_B, trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import FullFinetuning, LinearProbe, LoRA, MlpHead, PartialK


def names(tuned: vpeft.TunedModel) -> set[str]:
    return {name for name, _ in tuned.trainable()}


def test_linear_probe_trains_the_head_alone() -> None:
    tuned = vpeft.tune(base_vit(), LinearProbe(), num_classes=5, show=False)
    assert names(tuned) == {"head.weight", "head.bias"}
    x = images_for(tuned.backbone)
    expected = F.linear(ViTByHand(base_vit())(x), tuned.head.weight, tuned.head.bias)
    assert torch.allclose(tuned(x), expected, atol=1e-5)
    assert trained(LinearProbe()) == 0
    assert trained(LinearProbe(), head=100) == 76_900


def test_linear_probe_with_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), LinearProbe(batch_norm=True), num_classes=5, show=False).train()
    x = images_for(tuned.backbone, 6)
    z = ViTByHand(base_vit())(x)
    expected = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-6).sqrt()
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert len(names(tuned)) == 2
    tuned.eval()
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "probe.safetensors")).eval()
    assert torch.equal(again(x), tuned(x))


def test_mlp_head_is_linear_relu_norm_dropout() -> None:
    tuned = vpeft.tune(base_vit(), MlpHead(layers=2), num_classes=5, show=False).train()
    randomise(tuned)
    x, h = images_for(tuned.backbone, 6), None
    h = ViTByHand(base_vit())(x)
    for key in ("outlet.after", "outlet.after_2"):
        layer = tuned.adapter().get_submodule(key)
        layer[3].p = 0.0
        h = F.relu(h @ layer[0].weight.T + layer[0].bias)
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * layer[2].weight + layer[2].bias
    assert torch.allclose(tuned(x), h @ tuned.head.weight.T + tuned.head.bias, atol=1e-4)


def test_mlp_head_counts() -> None:
    assert trained(MlpHead()) == 1_776_384
    assert trained(MlpHead(layers=1), head=100) == 592_128 + 76_900


@pytest.mark.parametrize(("k", "count"), [(1, 7_089_408), (2, 14_177_280), (4, 28_353_024)])
def test_partial_k_counts(k: int, count: int) -> None:
    assert trained(PartialK(k=k)) == count


def test_partial_4_of_swin_takes_the_merging_between_the_stages() -> None:
    shallow = {name.split(".unfreeze")[0] for name in names(vpeft.tune(tiny_swin(), PartialK(k=2), show=False))}
    assert shallow == {"blocks.2", "blocks.3", "norm"}
    deep = {name.split(".unfreeze")[0] for name in names(vpeft.tune(tiny_swin(), PartialK(k=3), show=False))}
    assert deep == shallow | {"blocks.1", "stages.1.downsample.norm", "stages.1.downsample.reduction"}


@pytest.mark.parametrize("make", [base_vit, tiny_swin, tiny_convnext])
def test_partial_k_trains_every_parameter_of_its_blocks(make) -> None:  # type: ignore[no-untyped-def]
    tuned = vpeft.tune(make(), PartialK(k=1), show=False)
    module = tuned.description.blocks[-1].exit.module
    last = {id(p) for p in module.parameters()} | {id(p) for p in tuned.description.norm.exit.module.parameters()}
    assert {id(p) for _, p in tuned.trainable()} == last
    assert all(p.requires_grad for p in module.parameters())
    assert tuned.plan().reach == f"from block {len(tuned.description.blocks) - 1}"


def test_partial_k_of_ten_blocks_does_not_touch_block_1_when_asked_for_block_10() -> None:
    tuned = vpeft.tune(tiny_vit(depth=11), PartialK(k=1), show=False)
    assert {name.split(".")[1] for name in names(tuned) if name.startswith("blocks")} == {"10"}


def test_partial_k_refuses_more_blocks_than_there_are() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"4 blocks; .* has 3"):
        vpeft.tune(base_vit(), PartialK(k=4), show=False)


def test_full_finetuning_trains_everything_but_the_unused_classifier() -> None:
    assert trained(FullFinetuning()) == 85_798_656
    for make in (base_vit, tiny_swin, tiny_convnext):
        tuned = vpeft.tune(make(), FullFinetuning(), show=False)
        assert {id(p) for _, p in tuned.trainable()} == {id(p) for p in tuned.backbone.parameters()}
        assert tuned.plan().reach == "full"


def test_full_finetuning_equals_plain_training() -> None:
    x = images_for(base_vit(), 4)
    tuned, plain = vpeft.tune(base_vit(), FullFinetuning(), show=False), base_vit()
    plain.requires_grad_(True)
    for model in (tuned, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(tuned.features(x), plain(x))


def test_full_finetuning_cannot_be_taken_off_but_is_loaded_onto_the_first_weights(tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), FullFinetuning(), num_classes=5, show=False)
    randomise(tuned)
    with pytest.raises(vpeft.VpeftError, match="Load the backbone again"):
        tuned.detach()
    path = tuned.save(tmp_path / "full.safetensors")
    x = images_for(base_vit())
    assert torch.equal(vpeft.load(base_vit(), path)(x), tuned(x))
    wrong = base_vit()
    wrong.norm.weight.data += 0.5
    with pytest.raises(vpeft.VpeftError, match="Load the backbone"):
        vpeft.load(wrong, path)
    again = vpeft.load(base_vit(), path)
    second = again.save(tmp_path / "again.safetensors")
    assert torch.equal(vpeft.load(base_vit(), second)(x), tuned(x))


def test_an_adapter_beside_full_finetuning_names_the_first_weights(tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), LoRA(rank=2), name="small", show=False)
    tuned.attach(FullFinetuning(), name="full")
    vpeft.load(base_vit(), tuned.save(tmp_path / "small.safetensors", name="small"), check=False)


def test_names_of_the_models_that_are_counted() -> None:
    assert trained(PartialK(k=12), model=VIT_B) == 85_798_656 - 742_656  # patch projection, class token, positions
