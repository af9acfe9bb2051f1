"""What several tasks on one adapter may expect of each method that has layers of a task's own, on Swin and on a ViT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.golden.by_hand import randomise
from tests.models import FAMILIES, images_for
from vpeft.batch import Batch
from vpeft.head import get_head
from vpeft.heads.linear_map import LinearMapHead
from vpeft.method import Method, all_methods

METHODS = sorted(
    name for name, kind in all_methods().items() if kind.category == "multi-task" and "tasks" in kind.model_fields
)
FAST = ("mtlora", "polyhistor")  # one of each way to run the trunk
SMALL = {"rank": 4, "bottleneck": 8, "cells": 8}
CELLS = [
    pytest.param(name, family, marks=() if name in FAST else pytest.mark.slow)
    for name in METHODS
    for family in ("timm_vit", "timm_swin")
]
# The prompts of all tasks are keys of every window, as in the paper: a further task is a further key.
CHANGED_BY_OTHERS = ("tadformer",)


def small(name: str) -> Method:
    """The method with sizes for tiny models."""
    kind = all_methods()[name]
    return kind(**{field: value for field, value in SMALL.items() if field in kind.model_fields})


def base(family: str) -> nn.Module:
    """The same tiny model each time."""
    torch.manual_seed(0)
    return FAMILIES[family]()


def heads(family: str, *tasks: str) -> dict[str, nn.Module]:
    """The first task reads the pooled feature, the second a map, of Swin that of the first stage."""
    early = LinearMapHead(24, 2, place="stages.0") if family == "timm_swin" else LinearMapHead(48, 2, place="norm")
    made = [get_head("linear")(48, 3), early, get_head("linear")(48, 4)]
    return dict(zip(tasks, made, strict=False))


def tuned_for(name: str, family: str, *tasks: str) -> vpeft.TunedModel:
    """Every trained tensor is off its start, and drawn by its name's place in the list of those without the task c."""
    tuned = vpeft.tune(base(family), small(name), head=heads(family, *tasks), show=False).eval()
    randomise(tuned, 0.1)
    return tuned


def of_task(key: str, task: str) -> bool:
    """Whether a tensor belongs to one task alone."""
    return f".{task}." in f".{key}."


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_a_batch_of_one_task_trains_its_own_tensors_and_the_shared_ones(name: str, family: str) -> None:
    tuned, x = tuned_for(name, family, "a", "b"), images_for(base(family))
    for task, other in (("a", "b"), ("b", "a")):
        tuned.zero_grad(set_to_none=True)
        tuned(x, batch=Batch(x, task=task)).square().sum().backward()
        reached = {key for key, p in tuned.trainable() if p.grad is not None and bool(p.grad.any())}
        touched = {key for key, p in tuned.trainable() if p.grad is not None}
        assert any(of_task(key, task) and not key.startswith("head.") for key in reached)
        assert any(not of_task(key, "a") and not of_task(key, "b") for key in reached)
        assert not [key for key in touched if of_task(key, other)]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_all_tasks_in_one_batch_are_each_what_they_are_alone(name: str, family: str) -> None:
    tuned, x = tuned_for(name, family, "a", "b"), images_for(base(family))
    together = tuned(x)
    assert set(together) == {"a", "b"} and tuned.tasks() == ("a", "b")
    alone: dict[str, Tensor] = {task: tuned(x, batch=Batch(x, task=task)) for task in together}
    for task, out in alone.items():
        assert torch.allclose(together[task], out, atol=1e-5), task
    assert tuned.methods()[0] == small(name).for_tasks(("a", "b"))


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_a_further_task_leaves_the_others_as_they_are(name: str, family: str) -> None:
    tuned, more = tuned_for(name, family, "a", "b"), tuned_for(name, family, "a", "b", "c")
    own, grown = tuned.adapter_state(), more.adapter_state()
    assert set(own) < set(grown) and all(of_task(key, "c") for key in set(grown) - set(own))
    with torch.no_grad():
        for key, value in own.items():
            grown[key].copy_(value)
    x = images_for(base(family))
    with torch.no_grad():
        changed = max(float((more(x)[task] - out).abs().max()) for task, out in tuned(x).items())
    if name in CHANGED_BY_OTHERS:
        assert changed > 1e-4
    else:
        assert changed <= 1e-5


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_all_heads_are_saved_and_loaded(name: str, family: str, tmp_path: Path) -> None:
    tuned, x = tuned_for(name, family, "a", "b"), images_for(base(family))
    again = vpeft.load(base(family), tuned.save(tmp_path / "two.safetensors")).eval()
    assert again.tasks() == ("a", "b") and again.methods() == tuned.methods()
    for task, out in tuned(x).items():
        assert torch.equal(again(x)[task], out)
        assert torch.equal(again(x, batch=Batch(x, task=task)), tuned(x, batch=Batch(x, task=task)))


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_the_trunk_runs_as_often_as_the_method_says(name: str, family: str) -> None:
    tuned, x, ran = tuned_for(name, family, "a", "b"), images_for(base(family)), []
    first = tuned.description.blocks[0].exit
    assert first is not None
    handle = first.module.register_forward_hook(lambda *_: ran.append(1))
    tuned(x)
    assert len(ran) == (2 if small(name).runs_per_task else 1)
    ran.clear()
    tuned(x, batch=Batch(x, task="a"))
    assert len(ran) == 1
    handle.remove()


def test_the_methods_are_those_of_the_survey_and_their_neighbours() -> None:
    assert set(METHODS) >= {
        *("hyperformer", "polyhistor", "polyhistor_lite", "vmt_adapter", "vmt_adapter_lite"),
        *("mtlora", "tadformer", "ditask"),
    }
