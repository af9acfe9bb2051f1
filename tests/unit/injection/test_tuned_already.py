"""A model has one TunedModel at a time, and one that is gone leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from tests.models import images_for
from tests.models import tiny_convnext as _convnext
from tests.models import tiny_vit as _vit
from vpeft.injection.tuned_already import TunedAlready
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import SSF, AdaptFormer, BitFit, LinearProbe, LoRA, PrefixTuning, VPTDeep

METHODS = [LoRA(rank=2), AdaptFormer(), SSF(), BitFit(), VPTDeep(tokens=2), PrefixTuning(), LinearProbe()]


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return _vit()


def tiny_convnext() -> nn.Module:
    torch.manual_seed(0)
    return _convnext()


def _hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def _tuned(model: nn.Module, method: vpeft.Method) -> TunedModel:
    tuned = vpeft.tune(model, method, num_classes=3)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return tuned


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_second_tune_is_refused_and_changes_nothing(method: vpeft.Method) -> None:
    model = tiny_vit()
    first = _tuned(model, method)
    before = first(images_for(model))
    with pytest.raises(TunedAlready, match=r"tuned\.attach"):
        vpeft.tune(model, LoRA(rank=4), num_classes=3)
    assert torch.equal(first(images_for(model)), before)
    first.detach()
    second = vpeft.tune(model, LoRA(rank=4), num_classes=3)
    assert torch.equal(second.features(images_for(model)), vpeft.describe(tiny_vit()).pooled(images_for(model)))


def test_a_part_of_a_tuned_model_and_a_copy_of_one_are_refused() -> None:
    model = tiny_vit()
    tuned = _tuned(model, LoRA(rank=2))
    twin = copy.deepcopy(tuned)
    with pytest.raises(TunedAlready):
        vpeft.tune(twin.backbone, LoRA(rank=2), num_classes=3)
    with pytest.raises(TunedAlready):
        vpeft.TunedModel(vpeft.describe(model)).attach(LoRA(rank=2))


def test_a_second_load_is_refused_with_the_way_to_add_one(tmp_path: Path) -> None:
    path = _tuned(tiny_vit(), LoRA(rank=2)).save(tmp_path / "a.safetensors", labels=list("abc"))
    model = tiny_vit()
    tuned = vpeft.load(model, path)
    with pytest.raises(TunedAlready, match=r"vpeft\.load\(tuned, path"):
        vpeft.load(model, path)
    vpeft.load(tuned, path, name="again")
    assert list(tuned.adapters) == ["default", "again"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("make", [tiny_vit, tiny_convnext])
def test_one_that_is_gone_leaves_nothing(method: vpeft.Method, make: type) -> None:
    model: nn.Module = make()
    images, classes = images_for(model), {name: type(part) for name, part in model.named_modules()}
    plain, state = model(images), {key: value.clone() for key, value in model.state_dict().items()}
    try:
        tuned = _tuned(model, method)
    except vpeft.VpeftError:
        pytest.skip("this method does not act on this backbone")
    assert not torch.equal(tuned.features(images), plain) or isinstance(method, LinearProbe)
    del tuned
    gc.collect()
    assert _hooks(model) == 0
    assert {name: type(part) for name, part in model.named_modules()} == classes
    assert torch.equal(model(images), plain)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    vpeft.tune(model, method, num_classes=3)


def test_one_that_was_detached_does_not_disturb_the_next() -> None:
    model = tiny_vit()
    first = _tuned(model, LoRA(rank=2))
    first.detach()
    second = vpeft.tune(model, LoRA(rank=2), num_classes=3)
    del first
    gc.collect()
    assert not any(parameter.requires_grad for parameter in second.backbone.parameters()) and _hooks(model)


def test_merged_weights_stay_when_it_is_gone() -> None:
    model = tiny_vit()
    tuned = _tuned(model, LoRA(rank=2))
    tuned.eval().merge()
    images = images_for(model)
    merged = tuned.features(images)
    del tuned
    gc.collect()
    assert _hooks(model) == 0 and torch.allclose(model(images), merged, atol=1e-6)


def test_a_copy_that_is_gone_leaves_the_first_as_it_is() -> None:
    tuned = _tuned(tiny_vit(), BitFit())
    images = images_for(tuned.backbone)
    before = tuned(images)
    twin = copy.deepcopy(tuned)
    again = pickle.loads(pickle.dumps(tuned))
    backbone = again.backbone
    del twin, again
    gc.collect()
    assert _hooks(backbone) == 0
    assert torch.equal(tuned(images), before)
    assert torch.equal(backbone(images), tiny_vit()(images))
