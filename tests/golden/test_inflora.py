"""InfLoRA restated with numpy: the design of A, the basis of earlier inputs, the sum of the branches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.golden.test_l2p import sequence
from tests.models import images_for, tiny_swin
from vpeft.method import BadField
from vpeft.methods import InfLoRA

METHOD = InfLoRA(rank=3, tasks=3, low=0.9, high=1.0)


def inputs_of(tuned: vpeft.TunedModel, images: Tensor) -> list[np.ndarray]:
    """What enters k and v of each block, (tokens, D), computed beside the model."""
    model, own = base_vit(), tuned.adapter_state()
    x, found = sequence(model, images), []
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            h = block.norm1(x)
            found.append(h.flatten(0, 1).double().numpy())
            q, k, v = block.attn.qkv(h).chunk(3, dim=-1)
            changed = []
            for name, y in (("k", k), ("v", v)):
                place = f"blocks.{number}.attn.{name}.parallel"
                for task in range(3):
                    y = y + h @ own[f"{place}.A"][task].T @ own[f"{place}.B.{task}"].T
                changed.append(y)
            heads = [part.unflatten(-1, (3, 16)).transpose(1, 2) for part in (q, *changed)]
            weights = (heads[0] @ heads[1].mT / 4).softmax(-1)
            x = x + block.attn.proj((weights @ heads[2]).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        found.append(model.norm(x)[:, 0].double().numpy())
    return found


def test_equals_a_restatement_over_three_tasks() -> None:
    torch.manual_seed(1)
    tuned = vpeft.tune(base_vit(), METHOD, num_classes=3, show=False).eval()
    bases: list[np.ndarray] = [np.zeros((48, 0))] * 3
    for task in range(3):
        images = images_for(base_vit(), 4) * (0.5 + task) + 0.3 * task
        batches = [(images[:3], torch.zeros(3)), (images[3:], torch.zeros(1))]
        METHOD.begin_task(tuned, task, 3)
        seen = inputs_of(tuned, images)
        tuned.prepare(batches)
        for number in range(3):
            covariance = seen[number].T @ seen[number] / len(seen[number])
            outside = covariance - bases[number] @ bases[number].T @ covariance
            left = np.linalg.svd(outside)[0][:, :3].T / math.sqrt(3)
            for name in ("k", "v"):
                designed = tuned.adapter_state()[f"blocks.{number}.attn.{name}.parallel.A"][task].double().numpy()
                # singular vectors are known up to their sign
                assert np.allclose(np.abs((3 * designed @ left.T).diagonal()), 1, atol=1e-4), (task, number)
                assert np.allclose(designed @ bases[number], 0, atol=1e-5)
        randomise(tuned, 0.2)
        after = inputs_of(tuned, images)
        assert np.allclose(tuned.features(images).detach().numpy(), after[-1], atol=1e-5)
        METHOD.end_task(tuned, batches)
        threshold = 0.9 + 0.1 * task / 3
        for number in range(3):
            covariance = after[number].T @ after[number] / len(after[number])
            total = (np.linalg.svd(covariance)[1] ** 2).sum()
            outside = covariance - bases[number] @ bases[number].T @ covariance
            left, values, _ = np.linalg.svd(outside)
            if task == 0:
                count = max(1, int((np.cumsum(values**2 / total) < threshold).sum()))
            else:
                held, count = 1 - (values**2).sum() / total, 0
                while held < threshold and count < 48 - bases[number].shape[1]:
                    held += values[count] ** 2 / total
                    count += 1
            bases[number] = np.concatenate([bases[number], left[:, :count]], axis=1)
            space = tuned.adapter_state()[f"blocks.{number}.attn.k.parallel.space.basis"].double().numpy()
            assert np.allclose(space @ space.T, bases[number] @ bases[number].T, atol=1e-4), (task, number)


def test_a_task_starts_where_the_last_one_ended_and_merges() -> None:
    tuned, images = vpeft.tune(base_vit(), METHOD, num_classes=3, show=False).eval(), images_for(base_vit())
    batches = [(images, torch.zeros(len(images)))]
    tuned.prepare(batches)
    randomise(tuned, 0.3)
    before = tuned(images)
    METHOD.end_task(tuned, batches)
    METHOD.begin_task(tuned, 1, 3)
    tuned.prepare(batches)
    assert torch.equal(tuned(images), before)
    names = {name.rpartition(".")[2] for name, _ in tuned.trainable() if "parallel" in name}
    assert names == {"1"}
    tuned.merge()
    assert torch.allclose(tuned(images), before, atol=1e-4)


def test_counts_and_refuses() -> None:
    assert trained(InfLoRA()) == 184_320
    with pytest.raises(BadField, match=r"inflora\(tasks=20\)"):
        METHOD.begin_task(vpeft.tune(base_vit(), METHOD, show=False), 1, 20)
    assert vpeft.tune(tiny_swin(), InfLoRA(rank=2), num_classes=2, show=False).plan().trainable > 0
