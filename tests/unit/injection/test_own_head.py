"""A model that keeps its own classifier: the plan says so, and weights that were never trained are warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

import vpeft
from tests.models import tiny_vit
from vpeft.injection.heads import FreshHead, looks_fresh
from vpeft.methods import BitFit, LoRA


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, num_classes=7)  # type: ignore[no-any-return]


def _transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=7)
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]


FRESH: dict[str, Callable[[], nn.Module]] = {
    "timm vit": lambda: timm.create_model("test_vit", num_classes=7),
    "timm resnet": lambda: timm.create_model("test_resnet", num_classes=7),
    "timm convnext": lambda: timm.create_model("test_convnext", num_classes=7),
    "torchvision resnet": lambda: _torchvision("resnet18"),
    "transformers vit": _transformers,
}


@pytest.mark.parametrize("kind", FRESH)
def test_a_head_as_it_was_initialised_is_warned_of_and_a_trained_one_is_not(kind: str) -> None:
    model = FRESH[kind]().eval()
    with pytest.warns(FreshHead, match="num_classes"):
        tuned = vpeft.tune(model, BitFit(), verify=False)
    assert "stays, frozen" in tuned.plan().totals() and "-> 7" in tuned.plan().totals()
    classifier = tuned.description.classifier
    assert looks_fresh(classifier)
    tuned.detach()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    assert not looks_fresh(classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FreshHead)
        vpeft.tune(model, BitFit(), verify=False)


def test_a_new_head_a_trained_classifier_and_no_classifier_are_not_mentioned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tuned in (
            vpeft.tune(timm.create_model("test_vit", num_classes=7), LoRA(rank=2), num_classes=3),
            vpeft.tune(timm.create_model("test_vit", num_classes=7), LoRA(rank=2), train=("head",)),
            vpeft.tune(tiny_vit(), LoRA(rank=2)),
        ):
            assert tuned.plan().own_head is None and "stays, frozen" not in str(tuned.plan())
