"""The shipped recipes of PASCAL-Context and NYUDv2: counts of the card at full size, and two steps in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vpeft
from vpeft.method_spec import parse_one
from vpeft.methods import get
from vpeft.recipes import recipe_file
from vpeft.tasks.multi_task import MultiTask
from vpeft.training.recipe import Recipe

HEADS = 1_946_624
# Trained numbers with the heads, of the published tables in millions and of the method card by arithmetic.
WITH_HEADS = {
    "mtlora(rank=16)": 4_954_682,
    "merging_and_norms": 1_548_288 + 52_794 + HEADS,
    "linear_probe": HEADS,
}
COUNTS = {"pascal-mt-swin-t@mtlora": (21, 7), "nyud-mt-swin-t@mtlora": (40, 0)}


def task_of(name: str) -> MultiTask:
    recipe = Recipe.from_toml(recipe_file(Path(name)), {"method": "linear_probe", "data.source": "unread"})
    task = recipe.task.build()
    assert isinstance(task, MultiTask)
    classes, parts = COUNTS[name]
    labels = {"semantic": classes, "parts": parts}
    bound: dict[str, Any] = {
        key: one.model_copy(update={"labels": tuple(map(str, range(labels[key])))}) if labels.get(key) else one
        for key, one in task.parts.items()
    }
    return task.model_copy(update={"parts": bound})


@pytest.mark.parametrize("text", WITH_HEADS)
def test_counts_at_full_size_are_those_of_the_card(text: str) -> None:
    method = parse_one(text)
    with torch.device("meta"):
        backbone = timm.create_model("swin_tiny_patch4_window7_224", img_size=448)
        tuned = vpeft.tune(backbone, get(method.name)(**method.fields), task=task_of("pascal-mt-swin-t@mtlora"))
    assert tuned.plan().trainable_with_head == WITH_HEADS[text]
    assert tuned.tasks() == ("semantic", "parts", "saliency", "normals")


@pytest.mark.parametrize("name", COUNTS)
def test_the_recipe_says_the_cards_numbers(name: str) -> None:
    recipe = Recipe.from_toml(recipe_file(Path(name)), {"method": "linear_probe", "data.source": "unread"})
    settings = recipe.optimisation
    assert (settings.lr, settings.batch, settings.epochs, settings.clip) == (3.125e-5, 32, 300, 5.0)
    task = task_of(name)
    assert task.size == (448, 448)
    assert next(iter(task.parts.values())).name == "semantic_segmentation"


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_two_steps_at_full_size(name: str) -> None:
    """One image of 448 x 448 on the real Swin-T with random weights: a finite loss falls within a few steps."""
    from vpeft.training.optimisation import Optimisation

    torch.manual_seed(0)
    task = task_of(name)
    sizes = {"semantic": 21, "parts": 7, "saliency": 2, "edges": 2}
    image = torch.randn(3, 448, 448)
    targets: dict[str, torch.Tensor] = {}
    for key in task.parts:
        if key == "normals":
            targets[key] = torch.nn.functional.normalize(torch.randn(3, 448, 448), dim=0)
        elif key == "depth":
            targets[key] = torch.rand(448, 448) + 1
        else:
            targets[key] = torch.randint(0, sizes[key], (448, 448))
    backbone = timm.create_model("swin_tiny_patch4_window7_224", img_size=448)
    tuned = vpeft.tune(backbone, get("mtlora")(rank=16), task=task, verify=False)
    settings = Optimisation(epochs=2, batch=1, lr=1e-4, warmup=0)
    result = vpeft.fit(tuned, [(image, targets)], optimisation=settings, task=task, progress=False)
    assert result.history[1].train_loss < result.history[0].train_loss
