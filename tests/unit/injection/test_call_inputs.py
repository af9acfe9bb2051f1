"""A TunedModel is called by position, by transformers' names, by its Trainer, and in the backbone's precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import vpeft
from tests.models import tiny_vit
from vpeft.injection.node import AdapterError
from vpeft.methods import LoRA


def test_the_one_input_by_any_of_its_names() -> None:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3)
    images = torch.randn(2, 3, 32, 32)
    expected = tuned(images)
    for name in ("pixel_values", "images", "x", "input"):
        assert torch.equal(tuned(**{name: images}), expected)


@pytest.mark.parametrize(
    ("inputs", "named"), [((), {}), ((1, 2), {}), ((1,), {"x": 2}), ((), {"attention_mask": 1}), ((), {"x": 1, "y": 2})]
)
def test_other_inputs_are_one_sentence(inputs: tuple[int, ...], named: dict[str, int]) -> None:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3)
    with pytest.raises(AdapterError, match="This model takes one input"):
        tuned(*inputs, **named)


def test_labels_give_the_loss_of_the_task() -> None:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    out = tuned(pixel_values=images, labels=labels)
    assert torch.equal(out["logits"], tuned(images))
    assert torch.allclose(out["loss"], functional.cross_entropy(tuned(images), labels))
    several = vpeft.get_task("multilabel")(labels=("a", "b"))
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), task=several)
    wanted = torch.tensor([[0.0, 1.0]] * 4)
    out = tuned(images, labels=wanted)
    assert torch.allclose(out["loss"], functional.binary_cross_entropy_with_logits(out["logits"], wanted))


def test_the_trainer_of_transformers_trains_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3)
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
    before = {name: value.clone() for name, value in tuned.adapter_state().items()}
    frozen = {name: value.clone() for name, value in tuned.backbone.state_dict().items()}
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    transformers.Trainer(tuned, settings, train_dataset=data).train()
    assert not any(torch.equal(value, before[name]) for name, value in tuned.adapter_state().items())
    assert all(torch.equal(value, frozen[name]) for name, value in tuned.backbone.state_dict().items())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_images_follow_the_precision_of_the_backbone(kind: torch.dtype) -> None:
    tuned = vpeft.tune(tiny_vit().to(kind), LoRA(rank=2), num_classes=3)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(tuned(images), tuned(images.to(kind)))
    assert torch.equal(tuned.features(images), tuned.features(images.to(kind)))
