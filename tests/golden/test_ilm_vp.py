"""ILM-VP restated in pixel values, its label mapping beside a search by hand, and training with it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_vit
from vpeft.methods import ILMVP

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def expanded(pixels: Tensor, own: dict[str, Tensor]) -> Tensor:
    canvas = torch.zeros_like(pixels)
    canvas[..., 4:28, 4:28] = F.interpolate(pixels, size=(24, 24), mode="bicubic", antialias=True)
    around = torch.zeros(3, 32, 32)
    around[:, :4], around[:, 28:] = own["up"].sigmoid(), own["down"].sigmoid()
    around[:, 4:28, :4], around[:, 4:28, 28:] = own["left"].sigmoid(), own["right"].sigmoid()
    return (canvas + around - MEAN) / STD


def test_equals_a_restatement_with_its_gradients() -> None:
    tuned = vpeft.tune(base_vit(), ILMVP(width=4), show=False).eval()
    randomise(tuned)
    own = {key.rpartition(".")[2]: p.detach().clone().requires_grad_() for key, p in tuned.trainable()}
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), {})(expanded(x * STD + MEAN, own))
    found = tuned.features(x)
    assert torch.allclose(found, expected, atol=1e-4)
    direction = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(parameter.grad, own[key.rpartition(".")[2]].grad, atol=1e-4)


def test_maps_each_class_to_the_source_that_is_chosen_for_it_most() -> None:
    tuned = vpeft.tune(tiny_vit(num_classes=7), ILMVP(width=4, classes=3), show=False).eval()
    layer = tuned.adapter().get_submodule("logits.after")
    counts = torch.zeros(7, 3)
    # the largest is (5, 1); then 5 and 1 are gone, so that 0 takes 2 with its 6 and not 5 with its 8
    counts[5] = torch.tensor([8.0, 9.0, 7.0])
    counts[2] = torch.tensor([6.0, 8.5, 1.0])
    counts[4] = torch.tensor([5.0, 0.0, 3.0])
    layer.follow(counts)
    assert layer.source.tolist() == [2, 5, 4]
    scores = torch.randn(4, 7)
    assert torch.equal(layer(scores), scores[:, [2, 5, 4]])


def test_counts_what_the_frozen_classifier_says_of_prompted_images() -> None:
    model, images, labels = tiny_vit(num_classes=7), images_for(tiny_vit(), 30), torch.arange(30) % 3
    tuned = vpeft.tune(copy.deepcopy(model), ILMVP(width=4, classes=3), show=False)
    randomise(tuned, 1.0)
    own = {key.rpartition(".")[2]: p.detach() for key, p in tuned.trainable()}
    choices = model(expanded(images * STD + MEAN, own)).argmax(1)
    counts = torch.stack([torch.bincount(choices[labels == c], minlength=7) for c in range(3)], dim=1).float()
    tuned.train()
    tuned.begin_epoch([(images[:11], labels[:11]), (images[11:], labels[11:])])
    assert tuned.training
    layer = tuned.adapter().get_submodule("logits.after")
    expected = [-1, -1, -1]
    while -1 in expected:
        source, target = divmod(int(counts.argmax()), 3)
        expected[target] = source
        counts[source] = counts[:, target] = -1
    assert layer.source.tolist() == expected and bool(layer.known)


def test_the_mapping_follows_the_border_in_training_and_is_saved(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(3, 32, 32, generator=generator) + i % 2, i % 2) for i in range(8)]
    model = tiny_vit(num_classes=5)
    tuned = vpeft.tune(copy.deepcopy(model), ILMVP(width=4, classes=2), show=False)
    seen: list[int] = []
    method = tuned.methods()[0]
    layer = tuned.adapter().get_submodule("logits.after")
    follow = type(layer).follow
    try:
        type(layer).follow = lambda self, counts: (seen.append(int(counts.sum())), follow(self, counts))[1]
        vpeft.fit(tuned, data, optimisation=vpeft.Optimisation(epochs=3, batch=4, lr=0.1), progress=False)
    finally:
        type(layer).follow = follow
    assert seen == [8, 8, 8]  # once for each epoch, all images
    assert method.follows_data and tuned(data[0][0][None]).shape == (1, 2)
    again = vpeft.load(model, tuned.save(tmp_path / "a.safetensors", labels=["a", "b"]))
    assert torch.equal(again.adapter().get_submodule("logits.after").source, layer.source)


def test_says_what_is_missing() -> None:
    tuned = vpeft.tune(tiny_vit(num_classes=7), ILMVP(width=4, classes=3), show=False)
    with pytest.raises(vpeft.VpeftError, match="begin_epoch"):
        tuned.advance(0.0)
    with pytest.raises(vpeft.VpeftError, match="has 0 for the images"):
        tuned.begin_epoch([])
    tuned = vpeft.tune(tiny_vit(num_classes=7), ILMVP(width=4, classes=3), num_classes=3, show=False)
    with pytest.raises(vpeft.VpeftError, match="a head of its own"):
        tuned.begin_epoch([])
    tuned = vpeft.tune(tiny_vit(num_classes=2), ILMVP(width=4, classes=3), show=False, verify=False)
    with pytest.raises(vpeft.VpeftError, match="maps 3 classes"):
        tuned.begin_epoch([(images_for(tiny_vit()), torch.tensor([0, 1]))])


def test_counts_and_forms() -> None:
    assert trained(ILMVP(width=96)) == 147_456
    assert trained(ILMVP(width=30, form="additive")) == 69_840
    x = images_for(base_vit())
    tuned = vpeft.tune(base_vit(), ILMVP(width=4, form="additive"), show=False).eval()
    assert torch.allclose(tuned.features(x), base_vit()(x), atol=1e-6)
    grey = vpeft.tune(base_vit(), ILMVP(width=4), show=False).eval()
    own = {key.rpartition(".")[2]: p for key, p in grey.trainable()}
    assert torch.allclose(grey.features(x), base_vit()(expanded(x * STD + MEAN, own)), atol=1e-5)
