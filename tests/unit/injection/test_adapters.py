"""Adapters that are off cost nothing, and whoever looks at one sees it as the model is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import vpeft
from tests.models import tiny_vit
from vpeft.injection.adapters import Adapters
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get

MIXED = ("lora", "adaptformer", "vpt_deep", "bitfit", "dora", "convpass")


def model_with(count: int) -> TunedModel:
    tuned = vpeft.tune(tiny_vit(), get("lora")(rank=2), num_classes=2, name="a0", show=False, verify=False)
    for number in range(1, count):
        tuned.attach(get(MIXED[number % len(MIXED)])(), name=f"a{number}", num_classes=2)
    return tuned.enable("a0")._tuned


def calls_of_train(tuned: TunedModel, monkeypatch: pytest.MonkeyPatch) -> int:
    seen = []
    plain = nn.Module.train

    def counted(module: nn.Module, mode: bool = True) -> nn.Module:
        seen.append(module)
        return plain(module, mode)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "train", counted)
        tuned.train(False)
    return len(seen)


def test_the_mode_is_set_without_a_visit_to_adapters_that_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls_of_train(model_with(2), monkeypatch) == calls_of_train(model_with(12), monkeypatch)


LOOKS: dict[str, Callable[[TunedModel], bool]] = {
    "by name": lambda tuned: tuned.adapters["a1"].training,
    "adapter": lambda tuned: tuned.adapter("a1").training,
    "values": lambda tuned: list(tuned.adapters.values())[1].training,
    "items": lambda tuned: dict(tuned.adapters.items())["a1"].training,
    "modules": lambda tuned: any(module.training for module in tuned.modules()),
    "children": lambda tuned: any(module.training for module in tuned.adapters.children()),
    "deep inside": lambda tuned: any(module.training for module in tuned.adapter("a1").modules()),
    "a copy": lambda tuned: copy.deepcopy(tuned).adapters["a1"].training,
    "a pickle": lambda tuned: pickle.loads(pickle.dumps(tuned)).adapters["a1"].training,
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_at_an_adapter_sees_the_mode_of_the_model(look: str) -> None:
    tuned = model_with(3)
    for mode in (False, True, False):
        assert LOOKS[look](tuned.train(mode)) is mode


@pytest.mark.parametrize("route", [("a1", "a1"), ("a1", "a0")])
def test_an_adapter_that_is_switched_on_has_the_mode_of_the_model(route: tuple[str, ...]) -> None:
    tuned = vpeft.tune(tiny_vit(), get("lora")(rank=2), num_classes=2, name="a0", show=False, verify=False)
    tuned.attach(get("lora")(rank=2, dropout=0.5), name="a1", num_classes=2)
    for _, parameter in tuned.trainable("a1"):
        nn.init.normal_(parameter)
    images = torch.randn(2, 3, *tuned.description.inputs.size)
    tuned.enable("a0")
    tuned.eval()
    with torch.no_grad():
        first = tuned.each(images, route)
        again = tuned.each(images, route)
        with tuned.enable("a1"):
            alone = tuned(images)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    torch.testing.assert_close(first[0], alone[0])
    with torch.no_grad(), tuned.train().enable("a1"):
        assert not torch.equal(tuned(images), tuned(images))


def test_a_mode_that_was_set_for_one_adapter_stays() -> None:
    tuned = model_with(2).eval()
    tuned.adapter("a1").train()
    with tuned.enable("a1"):
        assert tuned.adapter("a1").training and not tuned.backbone.training


def test_a_removed_adapter_waits_for_nothing() -> None:
    adapters = Adapters()
    adapters["a"] = nn.Linear(1, 1)
    adapters.eval()
    del adapters["a"]
    adapters["a"] = nn.Linear(1, 1)
    assert adapters["a"].training


def test_adapters_of_equal_methods_are_tried_once_beside_others() -> None:
    tuned = vpeft.tune(tiny_vit(), get("lora")(rank=2), num_classes=2, name="a0", show=False, verify=False)
    for number in range(1, 6):
        tuned.attach(get("lora")(rank=2), name=f"a{number}", num_classes=2)
    images, passes = torch.randn(6, 3, *tuned.eval().description.inputs.size), list[int]()
    handle = tuned.backbone.patch_embed.register_forward_hook(lambda _, __, out: passes.append(len(out)))
    with torch.no_grad():
        tuned.each(images, [f"a{number}" for number in range(6)])
    handle.remove()
    assert passes == [1, 1, 2, 6], "one trial (alone, the other alone, both), and one pass"
