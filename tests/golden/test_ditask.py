"""DiTASK: its flow against the authors' library (difw 0.0.31), its weights restated with plain tensors, and counted."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, vectors
from tests.models import images_for
from vpeft.layers.monotone_flow import MonotoneFlow, Spectrum
from vpeft.methods import DiTASK


@pytest.mark.parametrize("cells", [4, 64])
@pytest.mark.parametrize("spread", ["small", "large"])
def test_the_flow_is_that_of_the_authors_library(cells: int, spread: str) -> None:
    stored = vectors("ditask")
    key = f"{cells}/{spread}"
    flow = MonotoneFlow(cells)
    flow.theta.data = stored[f"theta/{key}"]
    x = torch.linspace(0.0, 1.0, 97, dtype=torch.float64)
    moved = flow(x)
    assert (moved - stored[f"moved/{key}"]).abs().max() <= 1e-7
    assert (moved - x).abs().max() > 1e-3
    (moved * stored["direction"]).sum().backward()
    expected = stored[f"grad/{key}"]
    assert flow.theta.grad is not None
    assert (flow.theta.grad - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_flow_is_monotone_keeps_its_ends_and_starts_at_the_identity_with_a_gradient() -> None:
    x = torch.linspace(0.0, 1.0, 301, dtype=torch.float64)
    flow = MonotoneFlow(8)
    assert torch.equal(flow(x), x)
    flow(x).square().sum().backward()
    assert flow.theta.grad is not None and bool((flow.theta.grad != 0).all())
    for spread in (0.5, 5.0, 50.0):
        torch.manual_seed(0)
        moved = MonotoneFlow(8, spread)(x).detach()
        assert moved[0] == 0 and moved[-1] == 1 and bool((moved.diff() >= 0).all())
        assert bool(moved.isfinite().all())


def test_a_spectrum_is_read_at_the_moved_places() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3 * 6, 6)
    flow = MonotoneFlow(4, 1.0)
    spectrum = Spectrum(weight, parts=3)
    changed = weight + spectrum(flow)
    places = flow(torch.linspace(0, 1, 6, dtype=torch.float64)).detach() * 5
    for part, own in zip(weight.chunk(3), changed.chunk(3), strict=True):
        U, sigma, Vh = torch.linalg.svd(part)
        low = places.floor().long().clamp(max=4)
        read = sigma[low] + (places - low).float() * (sigma[low + 1] - sigma[low])
        assert torch.allclose(own, U @ torch.diag(read) @ Vh, atol=1e-5)
        assert torch.allclose(torch.linalg.svdvals(own), read, atol=1e-5)


def test_equals_a_restatement_on_a_vit() -> None:
    method = DiTASK(cells=5, task_cells=3, patch=False, train_norms=False)
    heads = {"a": torch.nn.Linear(48, 5), "b": torch.nn.Linear(48, 2)}
    tuned = vpeft.tune(base_vit(), method, head=heads, verify=False, show=False).eval()
    randomise(tuned, 0.5)
    own, x, model = dict(tuned.trainable()), images_for(base_vit()), base_vit()
    out = tuned(x)

    def warped(weight: torch.Tensor, theta: torch.Tensor, parts: int) -> torch.Tensor:
        flow = MonotoneFlow(len(theta) + 1)
        flow.theta.data = theta.detach()
        rows = []
        for part in weight.chunk(parts):
            U, sigma, Vh = torch.linalg.svd(part, full_matrices=False)
            at = flow(torch.linspace(0, 1, len(sigma), dtype=torch.float64)).detach() * (len(sigma) - 1)
            low = at.floor().long().clamp(max=len(sigma) - 2)
            rows.append(U @ torch.diag(sigma[low] + (at - low).float() * (sigma[low + 1] - sigma[low])) @ Vh)
        return torch.cat(rows)

    for task, head in heads.items():
        changes = {}
        for i in range(3):
            for name in ("qkv", "proj", "fc1", "fc2"):
                inside = "attn" if name in ("qkv", "proj") else "mlp"
                module = getattr(getattr(model.blocks[i], inside), name)
                key = f"blocks.{i}.{inside}.{name}"
                streams = i == 2 and name != "qkv"
                theta = own[f"{key}.after.own.{task}.flow.theta" if streams else f"{key}.reparametrize.flow.theta"]
                weight = warped(module.weight.detach(), theta, 3 if name == "qkv" else 1)
                changes[f"blocks.{i}.{name}"] = lambda _, came, w=weight, b=module.bias: came @ w.T + b
        expected = head(ViTByHand(model, changes)(x))
        assert torch.allclose(out[task], expected, atol=1e-5), (out[task] - expected).abs().max()


def test_counts_of_the_paper() -> None:
    # the authors make maps of qkv for each task besides, 4 * 4 * 3 numbers, and drop what they give
    count = trained(DiTASK(tasks=("a", "b", "c", "d")), model="swin_tiny_patch4_window7_224")
    assert count == 1_604_298 - 48 == 12 * 4 * 63 + 4 * 3 * 4 * 3 + 1_548_288 + 52_794
