"""DnA: the decomposition, what each mode trains, the alignment, and that it is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext
from vpeft.layers.contrast import supervised_contrastive, two_views
from vpeft.methods import DnA


def test_equals_a_restatement_and_merges() -> None:
    tuned = vpeft.tune(base_vit(), DnA(trains="all", align=0, targets=("fc1", "proj")), show=False)
    start = {key: value.detach().clone() for key, value in tuned.trainable()}
    randomise(tuned, 0.05)
    own, plain, changes = dict(tuned.trainable()), base_vit(), {}
    for i in range(3):
        for name, short in (("mlp.fc1", "fc1"), ("attn.proj", "proj")):
            key, W = f"blocks.{i}.{name}.reparametrize", plain.get_submodule(f"blocks.{i}.{name}").weight.detach()
            layer = tuned.adapter().get_submodule(key)
            S, S0 = torch.zeros(W.numel()), torch.zeros(W.numel())
            S[layer.index.long()], S0[layer.index.long()] = own[f"{key}.values"].detach(), start[f"{key}.values"]
            low = start[f"{key}.U"] @ start[f"{key}.V"]
            E = W - low - S0.reshape(W.shape)  # the frozen rest
            assert float(E.abs().max()) <= float(S0[layer.index.long()].abs().min()) + 1e-6
            assert start[f"{key}.U"].shape == (len(W), 12) and len(layer.index) == int(0.05 * W.numel())
            total = own[f"{key}.U"].detach() @ own[f"{key}.V"].detach() + S.reshape(W.shape) + E
            delta = total - W
            changes[f"blocks.{i}.{short}"] = lambda y, x, d=delta: y + x @ d.T
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(images), expected, atol=1e-4)


def test_low_rank_part_is_the_best_one_beside_the_sparse_part() -> None:
    torch.manual_seed(0)
    model = base_vit()
    weight = model.blocks[1].mlp.fc1.weight
    with torch.no_grad():  # a low-rank weight with a few large entries
        weight.copy_(torch.randn(192, 12) @ torch.randn(12, 48) / 10)
        large = torch.randperm(weight.numel())[:40]
        weight.view(-1)[large] += 5.0
    tuned = vpeft.tune(model, DnA(trains="all", align=0, rounds=30, share=0.01, targets=("fc1",)), show=False)
    layer = tuned.adapter().get_submodule("blocks.1.mlp.fc1.reparametrize")
    assert len(set(large.tolist()) & set(layer.index.tolist())) >= 38
    assert torch.allclose(layer.U.T @ layer.U, torch.eye(12), atol=1e-4)


@pytest.mark.parametrize(
    ("trains", "names"),
    [
        ("sparse", {"values"}),
        ("low_rank", {"U", "V"}),
        ("U", {"U"}),
        ("V", {"V"}),
        ("U+sparse", {"U", "values"}),
        ("V+sparse", {"V", "values"}),
        ("all", {"U", "V", "values"}),
    ],
)
def test_modes_train_what_they_say(trains: Any, names: set[str]) -> None:
    tuned = vpeft.tune(base_vit(), DnA(trains=trains, align=0), show=False)
    assert {key.rpartition(".")[2] for key, _ in tuned.trainable()} == names
    assert tuned.verify().identity


def test_counts() -> None:
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
    assert trained(DnA()) == 12 * sum(int(0.05 * out * came) for out, came in shapes)
    ranks = [(int(0.25 * came), out, came) for out, came in shapes]
    ranks[3] = (768, 768, 3072)  # no more than the smaller side
    assert trained(DnA(trains="low_rank")) == 12 * sum(r * (out + came) for r, out, came in ranks)


def test_convolutions_are_matrices_as_they_lie_in_memory() -> None:
    tuned = vpeft.tune(tiny_convnext(), DnA(trains="low_rank", align=0, targets=("conv",)), show=False)
    layer = tuned.adapter().edits[0].layer
    assert (layer.U.shape[0], layer.V.shape[1]) == (16 * 7, 7)


def test_alignment_lowers_the_contrastive_loss_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32) + 2.0 * torch.randn(8, 3, 1, 1)
    tuned = vpeft.tune(base_vit(), DnA(share=0.2, align=30, align_lr=0.003), num_classes=2, show=False)
    views = [two_views(images).flatten(0, 1) for _ in range(6)]
    pairs = torch.arange(8).repeat(2)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(supervised_contrastive(tuned.features(both), pairs, 0.2)) for both in views) / len(views)

    before, head = loss(), tuned.head.weight.detach().clone()
    frozen = {key: value.clone() for key, value in tuned.backbone.state_dict().items()}
    tuned.prepare([(images, torch.arange(8) % 2)])
    assert loss() < before - 0.05
    assert torch.equal(tuned.head.weight, head) and all(p.grad is None for p in tuned.parameters())
    assert all(torch.equal(value, frozen[key]) for key, value in tuned.backbone.state_dict().items())
    again = vpeft.load(base_vit(), tuned.save(tmp_path / "a.safetensors"))
    again.prepare([(images.flip(0), torch.arange(8) % 2)])
    assert torch.equal(again.features(images), tuned.features(images))


def test_nt_xent_is_that_of_simclr() -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 5)
    unit = F.normalize(z, dim=1)
    scores = unit @ unit.T / 0.2
    by_hand = -sum(
        scores[i, (i + 3) % 6] - torch.logsumexp(torch.cat([scores[i, :i], scores[i, i + 1 :]]), 0) for i in range(6)
    )
    assert torch.allclose(supervised_contrastive(z, torch.arange(3).repeat(2), 0.2), by_hand / 6, atol=1e-5)
