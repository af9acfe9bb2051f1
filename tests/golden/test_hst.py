"""HST against the authors' numbers, its derived count, and the state that must survive."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import vpeft
from tests.golden import parity
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import HST


def _mapping() -> dict[str, str]:
    """Our names to the reference's."""
    names = {
        "stem.0.weight": "m_patch_embed1.conv.0.weight",
        "stem.1.weight": "m_patch_embed1.conv.1.weight",
        "stem.1.bias": "m_patch_embed1.conv.1.bias",
        "stem.3.weight": "m_patch_embed1.conv.3.weight",
        "stem.3.bias": "m_patch_embed1.conv.3.bias",
    }
    for level in (1, 2, 3):
        ours, block = f"stages.{level - 1}", f"m_block{level}.0"
        for kind in ("weight", "bias"):
            names[f"{ours}.enter.{kind}"] = f"m_patch_embed{level}.norm.{kind}"
            names[f"{ours}.bridge.{kind}"] = f"T_Bridge_{level}.{kind}"
            names[f"{ours}.norm.{kind}"] = f"m_norm{level}.{kind}"
            names[f"{ours}.blocks.0.meta_norm.{kind}"] = f"m_proj_norm{level}.{kind}"
            if level > 1:
                names[f"{ours}.down.{kind}"] = f"m_patch_embed{level}.proj.{kind}"
            for norm in ("norm1", "norm2"):
                names[f"{ours}.blocks.0.{norm}.{kind}"] = f"{block}.{norm}.{kind}"
            for part in ("q", "k", "v", "proj"):
                names[f"{ours}.blocks.0.{part}.{kind}"] = f"{block}.attn.{part}.{kind}"
            for part in ("fc1", "fc2"):
                names[f"{ours}.blocks.0.{part}.{kind}"] = f"{block}.mlp.{part}.{kind}"
    found = {f"outlet.after.{key}": value for key, value in names.items()}
    for i in range(3):
        found[f"blocks.{i}.insert_tokens.tokens"] = f"m_embeddings.{i}"
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                found[f"blocks.{i}.{norm}.unfreeze.{kind}"] = f"blocks.{i}.{norm}.{kind}"
    return found


def test_equals_the_authors_code() -> None:
    stored = parity.vectors("hst")
    tuned = vpeft.tune(parity.base_vit(), HST(widths=(12, 24, 48), heads=(2, 4, 3)), verify=False, show=False).eval()
    ours, names = dict(tuned.trainable()), _mapping()
    assert set(ours) == set(names)
    state = tuned.adapter_state()
    with torch.no_grad():
        for key, parameter in ours.items():
            parameter.copy_(stored[f"param/{names[key]}"].reshape(parameter.shape))
        for kind in ("running_mean", "running_var"):
            state[f"outlet.after.stem.1.{kind}"].copy_(stored[f"buffer/m_patch_embed1.conv.1.{kind}"])
            state[f"outlet.after.last.{kind}"].copy_(stored[f"buffer/fc_norm.{kind}"])
    inputs = load_file(parity.VECTORS / "inputs.safetensors")
    y = tuned.features(inputs["x"])
    assert (y - stored["y"]).abs().max() <= parity.OUTPUT
    (y * inputs["direction_vit"]).sum().backward()
    for key, parameter in ours.items():
        expected = stored[f"grad/{names[key]}"].reshape(parameter.shape)
        if key.endswith(".k.bias"):  # zero in exact arithmetic
            assert parameter.grad is not None
            assert parameter.grad.abs().max() < 1e-6
            continue
        assert (parameter.grad - expected).abs().max() <= parity.GRADIENT * expected.abs().max(), key


def test_count_is_the_derived_one() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    tuned = vpeft.tune(model, HST(), num_classes=100, verify=False, show=False)
    plan = tuned.plan()
    assert plan.trainable == 764_840  # printed 0.78 M
    assert plan.trainable_with_head == 764_840 + 72 * 100 + 100
    assert plan.reach == "full"
    side = 462_312 + 88_616 + 166_104 + 432 + 1_296
    assert sum(p.numel() for k, p in tuned.trainable() if k.startswith("outlet.")) == side


@pytest.mark.parametrize("tune_norms", [True, False])
def test_gradients_pass_every_block_as_meta_tokens_stand_in_each(tune_norms: bool) -> None:
    """A side network that saves no memory: frozen blocks keep tensors even if only the meta tokens train in them."""
    model = tiny_vit()
    images = images_for(model)
    tuned = vpeft.tune(model, HST(widths=(8, 12), heads=(2, 2), tune_norms=tune_norms), num_classes=3, show=False)
    assert tuned.plan().reach == "full"
    saved = saved_by(tuned, images)
    assert min(saved.within) > 0
    assert saved.beyond, "the trunk's own activations are kept too"


def test_the_pyramid_on_224_pixels_has_the_papers_grids() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
        tuned = vpeft.tune(model, HST(), verify=False, show=False)
        pyramid = tuned.adapter().get_submodule("outlet.after")
        image, sizes = pyramid.stem(torch.empty(1, 3, 224, 224)), []
        for stage in pyramid.stages:
            maps, metas = [torch.empty(1, 14, 14, 768)] * 3, [torch.empty(1, 1, 768)] * 3
            image = stage(image, maps, metas)
            sizes.append(tuple(image.shape[1:]))
    assert sizes == [(32, 56, 56), (48, 28, 28), (64, 14, 14), (72, 7, 7)]


def test_batch_norm_statistics_are_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_vit()
    images, state = images_for(model, 4), {k: v.clone() for k, v in model.state_dict().items()}
    tuned = vpeft.tune(model, HST(), num_classes=4, show=False).train()
    tuned(images)  # moves the running statistics
    tuned.eval()
    assert tuned.adapter_state()["outlet.after.last.running_mean"].abs().max() > 0
    base = tiny_vit()
    base.load_state_dict(state)
    again = vpeft.load(base, tuned.save(tmp_path / "a.safetensors")).eval()
    assert torch.equal(again(images), tuned(images))
    assert again.head.in_features == 64


def test_one_level_for_each_stage_of_swin() -> None:
    model = tiny_swin()
    images = images_for(model)
    tuned = vpeft.tune(model, HST(), num_classes=4, show=False).eval()
    stages = tuned.adapter().get_submodule("outlet.after").stages
    assert [stage.bridge.in_features for stage in stages] == [24, 48]
    assert torch.allclose(tuned(images)[:1], tuned(images[:1]), atol=1e-5)


def test_features_of_another_width_need_a_head_of_their_own() -> None:
    with pytest.raises(vpeft.VpeftError, match="64 channels"):
        vpeft.tune(tiny_vit(num_classes=7), HST(), show=False)


def test_without_tokens_it_is_refused() -> None:
    with pytest.raises(vpeft.MissingPlace, match="insert_tokens"):
        vpeft.tune(tiny_convnext(), HST(), show=False)
