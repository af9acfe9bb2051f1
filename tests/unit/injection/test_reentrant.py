"""Reentrant activation checkpointing: refused where it would train nothing, left alone where it trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vpeft
from tests.models import images_for, tiny_vit
from vpeft.method import get_method

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, often overlooked


class Checkpointed(nn.Module):
    """Runs a block in a checkpoint, as libraries do."""

    def __init__(self, block: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return out


def gradients(name: str, kind: str) -> dict[str, Tensor | None]:
    torch.manual_seed(0)
    fields = {"tokens": 2} if name.startswith("vpt") else {}
    tuned = vpeft.tune(tiny_vit(), get_method(name)(**fields), num_classes=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if kind != "none":
        blocks = tuned.backbone.blocks
        assert isinstance(blocks, nn.Sequential)
        for i, block in enumerate(blocks):
            blocks[i] = Checkpointed(block, kind == "reentrant")
    tuned.train()
    tuned(images_for(tiny_vit())).square().sum().backward()
    return {key: parameter.grad for key, parameter in tuned.trainable()}


@pytest.mark.parametrize(
    "name", ["lora", "adaptformer", "vpt_deep", "ln_tune", "prefix_tuning", "convpass", "ssb", "vpt_shallow"]
)
def test_it_is_refused_where_nothing_inside_would_train(name: str) -> None:
    with pytest.raises(vpeft.VpeftError, match="reentrant kind.*use_reentrant=False"):
        gradients(name, "reentrant")


@pytest.mark.parametrize("name", ["ssf", "lst", "linear_probe", "bitfit"])
def test_it_is_left_alone_where_a_gradient_enters_or_nothing_inside_trains(name: str) -> None:
    expected, found = gradients(name, "none"), gradients(name, "reentrant")
    for key, gradient in expected.items():
        other = found[key]
        assert gradient is not None and other is not None, key
        assert torch.allclose(gradient, other, atol=1e-5 * float(gradient.abs().max() + 1e-6)), key


@pytest.mark.parametrize("name", ["lora", "adaptformer", "vpt_deep", "ln_tune", "prefix_tuning", "mona"])
def test_the_other_kind_trains(name: str) -> None:
    torch.manual_seed(0)
    expected, found = gradients(name, "none"), gradients(name, "other")
    dropped = name == "mona"  # draws dropout in another order of modules; only that it trains is looked at
    for key, gradient in expected.items():
        other = found[key]
        assert (gradient is None) == (other is None), key
        if gradient is not None and other is not None and not dropped:
            assert torch.allclose(gradient, other, atol=1e-5 * float(gradient.abs().max() + 1e-6)), key


def test_evaluation_and_no_grad_are_no_matter() -> None:
    tuned = vpeft.tune(tiny_vit(), get_method("lora")(), num_classes=3)
    blocks = tuned.backbone.blocks
    assert isinstance(blocks, nn.Sequential)
    for i, block in enumerate(blocks):
        blocks[i] = Checkpointed(block, True)
    tuned.train()
    with torch.no_grad():
        tuned(images_for(tiny_vit()))
    tuned.eval()
    tuned(images_for(tiny_vit()))
