"""CODA-Prompt restated: weighted components, orthonormal starts, earlier tasks untouched."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import randomise
from tests.golden.parity import base_vit
from tests.golden.test_dualprompt import with_prefixes
from tests.models import images_for, tiny_swin
from vpeft.method import BadField
from vpeft.methods import CODAPrompt
from vpeft.methods.coda_prompt import orthonormal_rows

METHOD = CODAPrompt(components=2, tasks=3, length=4, blocks=(0, 2), mu=0.3)


def started(tasks: int) -> vpeft.TunedModel:
    tuned = vpeft.tune(base_vit(), METHOD, num_classes=3, show=False).eval()
    for number in range(tasks):
        METHOD.begin_task(tuned, number, 3)
        randomise(tuned, 0.4)
    return tuned


def test_equals_a_restatement() -> None:
    tuned, model, images = started(2), base_vit(), images_for(base_vit(), 4)
    own, query = dict(tuned.adapter().owned()), model(images).detach()
    prefixes, overlaps = {}, []
    for block in (0, 2):
        parts = [
            torch.cat([own[f"blocks.{block}.attn.core.extend.{part}.{task}"] for task in range(2)])
            for part in ("prompts", "keys", "attention")
        ]
        made = []
        for q in query:
            prompt = torch.zeros(4, 48)
            for p, k, a in zip(*parts, strict=True):
                prompt = prompt + F.cosine_similarity(q * a, k, dim=0) * p.reshape(4, 48)
            made.append(prompt)
        whole = torch.stack(made)
        prefixes[block] = whole[:, :2], whole[:, 2:]
        overlaps += [(x @ x.T - torch.eye(4)).square().mean() for x in parts]
    assert torch.allclose(tuned.features(images), with_prefixes(model, images, prefixes), atol=1e-5, rtol=1e-5)
    penalty = tuned.penalty()
    assert penalty is not None and torch.allclose(penalty, 0.3 * torch.stack(overlaps).sum(), rtol=1e-5)


def test_starts_are_orthonormal_to_all_before() -> None:
    tuned = vpeft.tune(base_vit(), METHOD, show=False)
    for number in range(3):
        METHOD.begin_task(tuned, number)
    own = dict(tuned.adapter().owned())
    for part in ("prompts", "keys", "attention"):
        rows = torch.cat([own[f"blocks.0.attn.core.extend.{part}.{task}"] for task in range(3)])
        assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-5), part
    full = orthonormal_rows(5, torch.zeros(0, 3))
    assert torch.allclose(full[:3] @ full[:3].T, torch.eye(3), atol=1e-5)
    assert torch.allclose(full.norm(dim=1), torch.ones(5))


def test_a_decaying_optimiser_leaves_earlier_tasks_alone() -> None:
    tuned, images = started(2), images_for(base_vit(), 4)
    before = {name: value.detach().clone() for name, value in tuned.adapter().owned()}
    optimiser = torch.optim.AdamW([value for _, value in tuned.trainable()], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(tuned(images), torch.tensor([0, 1, 2, 0])).backward()
        optimiser.step()
    for name, value in tuned.adapter().owned():
        task = name.rpartition(".")[2]
        still = "extend" in name and task != "1"
        assert torch.equal(value, before[name]) == still, name


def test_refusals() -> None:
    with pytest.raises(BadField, match=r"coda_prompt\(tasks=5\)"):
        METHOD.begin_task(started(1), 1, 5)
    with pytest.raises(vpeft.MissingPlace, match="attends within windows"):
        vpeft.tune(tiny_swin(), CODAPrompt(), show=False)
