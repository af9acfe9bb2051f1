"""SCT against the authors' numbers and their choice of channels, restatements, merging and the stored choice."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import vpeft
from tests.golden.parity import reproduce, vectors
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import SCT


def test_equals_the_authors_code_and_choice() -> None:
    stored = vectors("sct_scale")
    mapping = {
        f"blocks.{i}.stream1.after.map.{kind}": lambda t, n=f"blocks.{i}.sct_attn.adapt_linear.{kind}": t[n]
        for i in range(3)
        for kind in ("weight", "bias")
    }
    images, labels = stored["extra/calibration_images"], stored["extra/calibration_labels"]
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]  # a class may be spread over batches
    tuned = reproduce("sct_scale", "vit", SCT(channels=16, scale=0.5), mapping, batches=batches)
    for i in range(3):
        index = tuned.adapter().get_submodule(f"blocks.{i}.stream1.after").index
        assert torch.equal(index, stored[f"buffer/blocks.{i}.index"])


def salient(features: Tensor, labels: Tensor, channels: int) -> list[int]:
    """By the definition, from (B, N, D) at once."""
    classes = sorted(set(labels.tolist()))
    norms = [torch.linalg.vector_norm(features[labels == c].flatten(0, 1), dim=0) for c in classes]
    return sorted(torch.stack(norms).mean(0).argsort(descending=True)[:channels].tolist())


@pytest.mark.parametrize("site", ["attn", "mlp", "qkv"])
@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_picks_the_channels_of_the_frozen_model(site: str, make: type[nn.Module]) -> None:
    plain = make()
    if make is tiny_convnext and site != "mlp":
        with pytest.raises(vpeft.MissingPlace, match=r"stream1|attn\.q"):
            vpeft.tune(plain, SCT(site=site))
        return
    images, labels = images_for(plain, 5), torch.tensor([3, 0, 3, 7, 0])
    tuned = vpeft.tune(copy.deepcopy(plain), SCT(site=site, channels=6), num_classes=2, show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter)  # what is trained already must not enter the choice
    tuned.train()
    tuned.prepare([(images[:2], labels[:2]), (images[2:], labels[2:])])
    assert tuned.training
    block = vpeft.describe(plain).blocks[1]
    caught: list[Tensor] = []
    if site == "attn":
        block.norm2.enter.module.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
    elif site == "mlp":
        block.exit.module.register_forward_hook(lambda _m, _a, out: caught.append(out))
    else:
        block.attn.qkv.module.register_forward_hook(lambda _m, _a, out: caught.append(out))
    plain(images)
    x = caught[0].movedim(1, -1) if make is tiny_convnext else caught[0]
    x = x[:, 1:] if make is tiny_vit else x
    x = x.reshape(5, -1, x.shape[-1])
    if site == "qkv":
        third = x.shape[-1] // 3
        expected = {"q": salient(x[..., :third], labels, 6), "v": salient(x[..., -third:], labels, 6)}
        for letter, index in expected.items():
            assert tuned.adapter().get_submodule(f"blocks.1.attn.{letter}.after").index.tolist() == index
        return
    where = "stream1" if site == "attn" else "mlp.fc2"
    found = tuned.adapter().get_submodule(f"blocks.1.{where}.after").index.tolist()
    assert found == salient(x, labels, 6)


@pytest.mark.parametrize("scale_input", [False, True])
def test_equals_a_restatement(scale_input: bool) -> None:
    plain = tiny_vit()
    tuned = vpeft.tune(copy.deepcopy(plain), SCT(channels=5, scale=0.3, scale_input=scale_input), show=False)
    images = images_for(plain)
    layers = [tuned.adapter().get_submodule(f"blocks.{i}.stream1.after") for i in range(3)]
    for layer in layers:
        torch.nn.init.normal_(layer.map.weight)
        torch.nn.init.normal_(layer.map.bias)
        layer.index.copy_(torch.tensor([2, 3, 11, 40, 47]))
    x = plain._pos_embed(plain.patch_embed(images))
    for block, layer in zip(plain.blocks, layers, strict=True):
        x = x + block.attn(block.norm1(x))
        part = x[..., layer.index]
        new = part @ layer.map.weight.T + layer.map.bias
        x = x.clone()
        x[..., layer.index] = 0.3 * part + new if scale_input else part + 0.3 * new
        x = x + block.mlp(block.norm2(x))
    assert torch.allclose(tuned.features(images), plain.norm(x)[:, 0], atol=1e-4)


@pytest.mark.parametrize("site", ["mlp", "qkv"])
@pytest.mark.parametrize("scale_input", [False, True])
def test_folds_into_the_projection_before_it(site: str, scale_input: bool) -> None:
    plain = tiny_vit()
    images = images_for(plain)
    method = SCT(site=site, channels=7, scale=0.5, scale_input=scale_input)
    tuned = vpeft.tune(plain, method, num_classes=3, show=False)
    tuned.prepare([(images, torch.tensor([0, 1]))])
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter, std=0.2)
    before = tuned(images)
    assert tuned.plan().mergeable
    tuned.merge()
    assert torch.allclose(tuned(images), before, atol=1e-5)
    tuned.unmerge()
    assert torch.equal(tuned(images), before)


def test_on_the_stream_it_does_not_merge() -> None:
    assert not vpeft.tune(tiny_vit(), SCT(), show=False).plan().mergeable


def test_the_choice_is_stored(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = tiny_vit()
    images = images_for(plain)
    tuned = vpeft.tune(copy.deepcopy(plain), SCT(channels=4), num_classes=3, show=False)
    tuned.prepare([(images, torch.tensor([0, 1]))])
    index = tuned.adapter().get_submodule("blocks.0.stream1.after").index
    assert index.tolist() != [0, 1, 2, 3]
    again = vpeft.load(plain, tuned.save(tmp_path / "a.safetensors", labels=list("abc")))
    assert torch.equal(again.adapter().get_submodule("blocks.0.stream1.after").index, index)
    assert torch.equal(again(images), tuned(images))


def test_needs_images() -> None:
    with pytest.raises(vpeft.VpeftError, match="labelled images"):
        vpeft.tune(tiny_vit(), SCT(), show=False).prepare([])


@pytest.mark.parametrize(
    ("model", "method", "count"),
    [
        ("vit_base_patch16_224", SCT(), 111_744),
        ("vit_base_patch16_224", SCT(site="qkv", channels=32), 24 * (32 * 32 + 32)),
        ("swin_base_patch4_window7_224", SCT(last=11), 11 * (96 * 96 + 96)),
    ],
)
def test_counts(model: str, method: SCT, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    tuned = vpeft.tune(backbone, method, verify=False, show=False)
    assert tuned.plan().trainable == count
    if method.site == "attn" and method.last is None:
        assert sum(v.numel() for k, v in tuned.adapter_state().items() if k.endswith("index")) == 12 * 96
