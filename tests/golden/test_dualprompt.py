"""DualPrompt restated: shared and task prefixes, the choice by keys, what trains in which task."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.parity import base_vit
from tests.golden.test_l2p import sequence
from tests.models import images_for, tiny_swin
from vpeft.method import BadField
from vpeft.methods import DualPrompt

METHOD = DualPrompt(shared_blocks=(0,), task_blocks=(1, 2), shared_length=2, task_length=3, tasks=4, pull=0.7)


def with_prefixes(model: nn.Module, images: Tensor, prefixes: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
    """Features with keys and values (B, n, D) in front of those of some blocks."""
    x = sequence(model, images)
    for number, block in enumerate(model.blocks):
        q, k, v = (part.transpose(1, 2) for part in block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 16)).unbind(2))
        if number in prefixes:
            keys, values = (rows.unflatten(-1, (3, 16)).transpose(1, 2) for rows in prefixes[number])
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        weights = (q @ k.mT / 4).softmax(-1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return model.norm(x)[:, 0]


def started(tasks: int) -> vpeft.TunedModel:
    tuned = vpeft.tune(base_vit(), METHOD, num_classes=3, show=False).eval()
    for number in range(tasks):
        METHOD.begin_task(tuned, number, 4)
        randomise(tuned, 0.4)
    return tuned


@pytest.mark.parametrize("training", [False, True])
def test_equals_a_restatement(training: bool) -> None:
    tuned, model, images = started(3), base_vit(), images_for(base_vit(), 5)
    own = dict(tuned.adapter().owned())
    keys = torch.stack([own[f"blocks.1.attn.core.extend.keys.of_task.{task}"] for task in range(4)])
    query = model(images).detach()
    similar = torch.stack([F.cosine_similarity(query, key[None], dim=1) for key in keys], dim=1)
    # the fourth task has not begun
    chosen = torch.full((5,), 2) if training else similar[:, :3].argmax(1)
    shared = own["blocks.0.attn.core.extend.keys"], own["blocks.0.attn.core.extend.values"]
    prefixes = {0: (shared[0].expand(5, -1, -1), shared[1].expand(5, -1, -1))}
    for block in (1, 2):
        of_task = torch.stack([own[f"blocks.{block}.attn.core.extend.of_task.{task}"] for task in range(4)])
        prefixes[block] = of_task[chosen, 0], of_task[chosen, 1]
    tuned.train(training)
    assert torch.allclose(tuned.features(images), with_prefixes(model, images, prefixes), atol=1e-5, rtol=1e-5)
    penalty = tuned.penalty()
    assert penalty is not None and torch.allclose(penalty, -0.7 * similar[:, 2].mean(), atol=1e-6)


def test_a_task_starts_as_the_one_before_and_trains_alone() -> None:
    tuned = started(1)
    before = {name: value.detach().clone() for name, value in tuned.adapter().owned()}
    METHOD.begin_task(tuned, 1, 4)
    own = dict(tuned.adapter().owned())
    for block in (1, 2):
        place = f"blocks.{block}.attn.core.extend.of_task"
        assert torch.equal(own[f"{place}.1"], before[f"{place}.0"])
    moved = {name for name, value in own.items() if not torch.equal(value, before[name])}
    assert moved == {"blocks.1.attn.core.extend.of_task.1", "blocks.2.attn.core.extend.of_task.1"}
    trained = {name for name, _ in tuned.trainable() if "of_task" in name}
    assert trained == moved | {"blocks.1.attn.core.extend.keys.of_task.1"}


def test_a_stream_that_goes_on_announces_tasks_before_it_loads() -> None:
    tuned = started(3)
    state = {name: value.clone() for name, value in tuned.adapter_state().items()}
    again = vpeft.tune(base_vit(), METHOD, num_classes=3, show=False).eval()
    for number in range(3):
        METHOD.begin_task(again, number, 4)
    again.load_adapter_state(state)
    images = images_for(base_vit(), 3)
    assert torch.equal(again(images), tuned(images))
    for one in (tuned, again):
        METHOD.begin_task(one, 3, 4)
    assert all(torch.equal(value, again.adapter_state()[name]) for name, value in tuned.adapter_state().items())


def test_refusals() -> None:
    with pytest.raises(BadField, match=r"room for 4 tasks, and the stream has 6. Write dualprompt\(tasks=6\)"):
        METHOD.begin_task(started(1), 1, 6)
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), DualPrompt(), show=False)
    with pytest.raises(vpeft.MissingPlace, match="3 blocks, and none of the task_blocks"):
        vpeft.tune(base_vit(), DualPrompt(task_blocks=(7,)), show=False)
