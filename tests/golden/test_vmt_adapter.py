"""VMT-Adapter and its light form, restated with plain tensors and counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.head import Head
from vpeft.methods import VMTAdapter, VMTAdapterLite

SWIN_T, TASKS = "swin_tiny_patch4_window7_224", ("a", "b", "c", "d")


@pytest.mark.parametrize("kind", [VMTAdapter, VMTAdapterLite])
def test_equals_a_restatement_on_a_vit(kind: type[VMTAdapter | VMTAdapterLite]) -> None:
    heads = {"a": torch.nn.Linear(48, 5), "b": torch.nn.Linear(48, 2)}
    tuned = vpeft.tune(base_vit(), kind(bottleneck=5, scale=0.5), head=heads, verify=False, show=False).eval()
    randomise(tuned)
    own, x = dict(tuned.trainable()), images_for(base_vit())
    twin = {key: p.detach().clone().requires_grad_() for key, p in own.items()}

    def made(i: int, h: torch.Tensor) -> torch.Tensor:
        key = f"blocks.{i}.mlp_branch.input.tap"
        inner = F.relu(h @ twin[f"{key}.down.weight"].T + twin[f"{key}.down.bias"])
        if kind is VMTAdapter:
            return inner @ twin[f"{key}.up.weight"].T + twin[f"{key}.up.bias"]
        return twin[f"{key}.scale"] * (inner @ twin[f"{key}.down.weight"] + twin[f"{key}.shift"])

    def feature(task: str) -> torch.Tensor:
        seen: dict[int, torch.Tensor] = {}

        def beside(i: int, y: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            seen[i] = made(i, h)
            return y + 0.5 * seen[i]

        def last(x: torch.Tensor, _: object) -> torch.Tensor:
            gains = [twin[f"stages.0.after.parts.{i}.gain.{task}"] for i in range(3)]
            shifts = [twin[f"stages.0.after.parts.{i}.shift.{task}"] for i in range(3)]
            return x + sum(gains[i] * seen[i] + shifts[i] for i in range(3))

        changes = {f"blocks.{i}.mlp_branch": lambda y, h, i=i: beside(i, y, h) for i in range(3)}
        return ViTByHand(base_vit(), {**changes, "blocks.2": last})(x)

    out = tuned(x)
    for task, head in heads.items():
        assert torch.allclose(out[task], head(feature(task)), atol=1e-5)
    out["a"].square().sum().backward()
    heads["a"](feature("a")).square().sum().backward()
    for key, parameter in own.items():
        if key.endswith(".b") and ".parts." in key:
            assert parameter.grad is None or not parameter.grad.any()
        elif not key.startswith("head."):
            expected, found = twin[key].grad, parameter.grad
            assert expected is not None and found is not None, key
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-3), key


class Early(Head):
    """The end of the first stage."""

    reads = ("stages.0",)

    def forward(self, features, batch=None):  # type: ignore[no-untyped-def]
        return features["stages.0"]


def test_a_head_of_an_early_stage_reads_its_own_features() -> None:
    tuned = vpeft.tune(tiny_swin(), VMTAdapter(bottleneck=5), head={"a": Early(), "b": Early()}, verify=False)
    randomise(tuned)
    own, x = dict(tuned.trainable()), images_for(tiny_swin())
    out = tuned.eval()(x)
    parts = [f"stages.0.tap.parts.{i}" for i in range(2)]
    with torch.no_grad():
        for part in parts:
            own[f"{part}.gain.a"].zero_()
            own[f"{part}.shift.a"].zero_()
        plain = tuned(x)["a"]  # the shared end of the stage
        for part in parts:
            own[f"{part}.shift.a"].fill_(0.5)
        shifted = tuned(x)["a"]
    assert torch.allclose(shifted, plain + 1.0, atol=1e-5)
    assert torch.allclose(tuned(x)["b"], out["b"], atol=1e-6)


def test_counts() -> None:
    widths = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    assert trained(VMTAdapter(tasks=TASKS), model=SWIN_T) == sum(2 * c * 64 + 64 + c + 8 * c for c in widths)
    assert trained(VMTAdapterLite(tasks=TASKS), model=SWIN_T) == sum(c * 64 + 64 + c + 1 + 8 * c for c in widths)
    assert not VMTAdapter().runs_per_task
