"""SMILE: its layer against a loop over tokens, and the parameters of the paper's ViT-B/32 with eight experts."""

from __future__ import annotations

import pytest
import timm
import torch

import vpeft
from vpeft.method import BadField
from vpeft.methods.smile import SMILE, RoutedExperts


@pytest.mark.parametrize(("rank", "top_k"), [(3, None), (3, 1), (None, 2)])
def test_layer_and_gradients(rank: int | None, top_k: int | None) -> None:
    torch.manual_seed(0)
    layer = RoutedExperts(6, 5, 4, rank, 2, top_k).double()
    for value in layer.parameters():
        torch.nn.init.normal_(value)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    rows = []
    for token in other.flatten(0, 1):
        norms = torch.stack([(gate @ token).norm() for gate in layer.gates])
        p = norms.exp() / norms.exp().sum()
        chosen = p.argsort(descending=True)[: top_k or 4]
        total = torch.stack([p[n] for n in chosen]).sum()
        row = torch.zeros(5, dtype=torch.float64)
        for n in map(int, chosen):
            inner = token if layer.A is None else layer.A[n] @ token
            row = row + p[n] / total * (layer.B[n] @ inner + layer.shift[n])
        rows.append(row)
    expected = torch.stack(rows).view(2, 3, 5)
    found = layer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * pull).sum(), x)
    (wanted,) = torch.autograd.grad((expected * pull).sum(), other)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)


def test_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch32_224", num_classes=0)
        tuned = vpeft.tune(model, SMILE(experts=8, rank=32, gate_rank=16, top_k=1), num_classes=1, verify=False)
    held = sum(value.numel() for key, value in tuned.adapter_state().items() if not key.startswith("head."))
    assert held == 141_203_712 - 87_456_000


def test_counts_fit_places() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    places = ("blocks.0.attn.q", "blocks.3.mlp.fc2")
    tuned = vpeft.tune(model, SMILE(places=places, counts=(1, 3)), num_classes=2, verify=False)
    assert [len(edit.layer.gates) for edit in tuned.adapter().edits] == [1, 3]  # type: ignore[union-attr,arg-type]
    with pytest.raises(BadField, match="1 numbers for 2 places"):
        list(SMILE(places=places, counts=(1,)).edits(tuned.description))
    with pytest.raises(vpeft.MissingPlace, match=r"blocks\.9\.nothing"):
        list(SMILE(places=("blocks.9.nothing",)).edits(tuned.description))
