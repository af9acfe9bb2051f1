"""Adapters that train the backbone's own tensors, or edit its weights, in one pass with others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vpeft
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import Method, get

METHODS: dict[str, Method] = {
    "bitfit": get("bitfit")(),
    "layer_norm": get("ln_tune")(),
    "dora": get("dora")(rank=2),
    "lora": get("lora")(rank=2),
    "ssf": get("ssf")(),
}
BACKBONES: dict[str, Callable[[], nn.Module]] = {"vit": tiny_vit, "swin": tiny_swin, "convnext": tiny_convnext}


def model_of(*methods: str, backbone: str = "vit") -> TunedModel:
    """A model with an adapter a0, a1, ... of each method, off zero."""
    torch.manual_seed(0)
    tuned: TunedModel | None = None
    for number, method in enumerate(methods):
        name = f"a{number}"
        if tuned is None:
            tuned = vpeft.tune(
                BACKBONES[backbone](), METHODS[method], num_classes=3, name=name, show=False, verify=False
            )
        else:
            tuned.attach(METHODS[method], name=name, num_classes=3)
        with torch.no_grad():
            for _, parameter in tuned.trainable(name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert tuned is not None
    return tuned.eval()


def passes_of(tuned: TunedModel, names: list[str], images: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    """The outputs of a mixed batch, and how many images each pass through the backbone had."""
    with torch.no_grad():
        tuned.each(images, names)  # trials
        passes = list[int]()
        entry = next(module for module in tuned.backbone.modules() if isinstance(module, nn.Conv2d))
        handle = entry.register_forward_hook(lambda _, __, out: passes.append(len(out)))
        outputs = tuned.each(images, names)
        handle.remove()
    return outputs, passes


def require_equal(tuned: TunedModel, names: list[str], images: torch.Tensor, outputs: list[torch.Tensor]) -> None:
    for row, name in enumerate(names):
        with torch.no_grad(), tuned.enable(name):
            torch.testing.assert_close(outputs[row], tuned(images[row : row + 1])[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_several_of_one_method_share_a_pass(method: str) -> None:
    tuned = model_of(*[method] * 3)
    names = ["a1", "a0", "a2", "a1", "a1"]
    images = images_for(tiny_vit(), 5)
    outputs, passes = passes_of(tuned, names, images)
    assert passes == [5]
    require_equal(tuned, names, images, outputs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_methods_share_a_pass(backbone: str) -> None:
    tuned = model_of(*METHODS, *METHODS, "bitfit", backbone=backbone)
    names = [f"a{number}" for number in (10, 3, 0, 2, 1, 4, 5, 7, 8, 6, 0, 2, 9)]
    images = images_for(tuned.backbone, len(names))
    outputs, passes = passes_of(tuned, names, images)
    if backbone == "convnext":
        # The trial finds that timm's norms of maps turn them before and after, so that trained norms and biases go by
        # themselves; LoRA, DoRA and SSF share a pass.
        assert sorted(passes, reverse=True) == [7, 2, 1, 1, 1, 1]
    else:
        assert passes == [len(names)]
    require_equal(tuned, names, images, outputs)


def test_gradients_are_recorded_in_passes_of_their_own() -> None:
    """No hook puts rows right while gradients are recorded, so a trained bias goes by itself and gets its gradient."""
    tuned, images = model_of("bitfit", "lora", "dora"), images_for(tiny_vit(), 3)
    with torch.no_grad():
        tuned.each(images, ["a0", "a1", "a2"])
    torch.stack(tuned.each(images, ["a0", "a1", "a2"])).square().sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in tuned.trainable("a0") if parameter.grad is not None}
    for _, parameter in tuned.trainable("a0"):
        parameter.grad = None
    with tuned.enable("a0"):
        tuned(images[:1]).square().sum().backward()
        alone = {name: parameter.grad for name, parameter in tuned.trainable("a0") if parameter.grad is not None}
    assert got.keys() == alone.keys() and len(got) > 4
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-6, rtol=1e-4)


def test_nothing_stays_when_the_adapters_are_gone() -> None:
    tuned, images = model_of("bitfit", "lora", "layer_norm"), images_for(tiny_vit(), 3)
    with torch.no_grad():
        mixed = tuned.each(images, ["a0", "a1", "a2"])
        assert any(module._forward_hooks for module in tuned.backbone.modules())
        tuned.detach("a0")
        torch.testing.assert_close(tuned.each(images, ["a2", "a1", "a2"])[1:], mixed[1:], atol=1e-6, rtol=1e-5)
    tuned.detach("a1")
    tuned.detach("a2")
    assert not any(module._forward_hooks for module in tuned.backbone.modules())


def test_a_tensor_that_is_used_without_its_module_goes_by_itself() -> None:
    """The model reads a module's tensors and does not call it: its rows cannot be put right, so no pass is shared."""
    tuned, images = model_of("bitfit", "lora"), images_for(tiny_vit(), 2)
    mlp = tuned.backbone.blocks[0].mlp  # type: ignore[union-attr,index]
    mlp.forward = lambda x: mlp.fc2(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)))
    with torch.no_grad():
        assert tuned._routing.company(tuned, "a0", images) == "none"
        outputs = tuned.each(images, ["a0", "a1"])
    require_equal(tuned, ["a0", "a1"], images, outputs)
