"""Polyhistor, Polyhistor-Lite and Hyperformer, restated with plain tensors and counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_swin
from vpeft.batch import Batch
from vpeft.methods import Hyperformer, Polyhistor, PolyhistorLite

SWIN_T, TASKS = "swin_tiny_patch4_window7_224", ("a", "b", "c", "d")


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def normed(x: Tensor, gain: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * gain + shift


def branch(own: dict[str, Tensor], key: str, v: Tensor, x: Tensor, width: int, inner: int, rank: int | None) -> Tensor:
    """LN(U GELU(D LN(x) + b) + c) with all of them made from v; the norms that the adapter has."""

    def made(name: str) -> Tensor:
        return own[f"{key}.generator.{name}.weight"] @ v + own[f"{key}.generator.{name}.bias"]

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        flat = made(f"{name}.weight")
        if rank is None:
            return flat.reshape(rows, columns)
        return flat[: rows * rank].reshape(rows, rank) @ flat[rows * rank :].reshape(rank, columns)

    if f"{key}.generator.before.gain.weight" in own:
        x = normed(x, made("before.gain"), made("before.shift"))
    hidden = gelu(x @ matrix("down", inner, width).T + made("down.bias"))
    out = hidden @ matrix("up", width, inner).T + made("up.bias")
    return normed(out, made("after.gain"), made("after.shift"))


def projected(own: dict[str, Tensor], key: str, z: Tensor) -> Tensor:
    hidden = F.relu(own[f"{key}.projector.fc1.weight"] @ z + own[f"{key}.projector.fc1.bias"])
    out = own[f"{key}.projector.fc2.weight"] @ hidden + own[f"{key}.projector.fc2.bias"]
    return normed(out, own[f"{key}.projector.norm.weight"], own[f"{key}.projector.norm.bias"], 1e-6)


def restated(own: dict[str, Tensor], method: Polyhistor | Hyperformer, task: str, x: Tensor) -> Tensor:
    """The feature of one task, with what its vector makes in every block."""
    place = "mlp_branch.parallel" if method.insert == "parallel" else "mlp.after"
    rank, inner, changes = getattr(method, "rank", None), 48 // method.reduction, {}
    for i in range(3):
        key = f"blocks.{i}.{place}"
        v = projected(own, key, own[f"blocks.0.{place}.embeddings.of.{task}"])
        if method.insert == "parallel":
            changes[f"blocks.{i}.mlp_branch"] = lambda y, h, k=key, v=v: y + branch(own, k, v, h, 48, inner, rank)
        else:
            changes[f"blocks.{i}.mlp"] = lambda y, _, k=key, v=v: y + branch(own, k, v, y, 48, inner, rank)
    return ViTByHand(base_vit(), changes)(x)


@pytest.mark.parametrize(
    "method",
    [Polyhistor(rank=2), Polyhistor(insert="serial", rank=2), Hyperformer()],
    ids=["parallel", "serial", "whole"],
)
def test_equals_a_restatement_for_each_task(method: Polyhistor | Hyperformer) -> None:
    heads = {"a": torch.nn.Linear(48, 5), "b": torch.nn.Linear(48, 2)}
    tuned = vpeft.tune(base_vit(), method, head=heads, verify=False, show=False).eval()
    randomise(tuned, 0.05)
    own, x = dict(tuned.trainable()), images_for(base_vit())
    twin = {key: p.detach().clone().requires_grad_() for key, p in own.items()}
    out = tuned(x)
    for task, head in heads.items():
        expected = head(restated(twin, method, task, x))
        assert torch.allclose(out[task], expected, atol=1e-5), (out[task] - expected).abs().max()
    out["a"].square().sum().backward()
    heads["a"](restated(twin, method, "a", x)).square().sum().backward()
    for key, parameter in own.items():
        if key.endswith("embeddings.of.b"):
            assert parameter.grad is None
        elif not key.startswith("head."):
            expected, found = twin[key].grad, parameter.grad
            assert expected is not None and found is not None, key
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-3), key


@pytest.mark.parametrize("kernel_first", [True, False])
def test_lite_scales_up_with_kronecker_products(kernel_first: bool) -> None:
    method = PolyhistorLite(tasks=("a", "b"), rank=2, norms=("before", "after"), kernel_first=kernel_first)
    heads = {"a": torch.nn.Linear(48, 5), "b": torch.nn.Linear(48, 2)}
    tuned = vpeft.tune(tiny_swin(), method, head=heads, verify=False, show=False)
    randomise(tuned, 0.05)
    own = {key: p.detach() for key, p in tuned.trainable()}
    first, key = "blocks.0.mlp_branch.parallel", "blocks.2.mlp_branch.parallel"

    def kron(kernel: Tensor, small: Tensor) -> Tensor:
        return sum(torch.kron(k, t) if kernel_first else torch.kron(t, k) for k, t in zip(kernel, small, strict=True))  # type: ignore[return-value]

    for task in ("a", "b"):
        small = []
        for row in own[f"{key}.block.vector"]:
            v = projected(own, first, torch.cat([own[f"{first}.embeddings.of.{task}"], row]))

            def made(name: str, v: Tensor = v) -> Tensor:
                return own[f"{first}.generator.{name}.weight"] @ v + own[f"{first}.generator.{name}.bias"]

            down, up = made("down.weight"), made("up.weight")
            small.append(
                (
                    down[:24].reshape(12, 2) @ down[24:].reshape(2, 24),
                    made("down.bias"),
                    up[:48].reshape(24, 2) @ up[48:].reshape(2, 12),
                    made("up.bias"),
                    made("before.gain"),
                    made("before.shift"),
                    made("after.gain"),
                    made("after.shift"),
                )
            )
        parts = [torch.stack(part) for part in zip(*small, strict=True)]
        names = ("matrix", "bias", "matrix", "bias", "before", "before", "after", "after")
        expected = [kron(own[f"{key}.kernels.{n}"], part) for n, part in zip(names, parts, strict=True)]
        found = tuned.adapter().get_submodule(key).weights(task)  # type: ignore[operator]
        assert found.down.shape == (24, 48)
        flat = [found.down, found.b_down, found.up, found.b_up, *found.before, *found.after]
        for ours, theirs in zip(flat, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
    x = images_for(tiny_swin())
    assert (tuned(x, batch=Batch(x, task="a")) - tuned(x)["a"]).abs().max() <= 1e-6


def test_counts() -> None:
    assert trained(Hyperformer(tasks=TASKS), model=SWIN_T) == 72_769_384  # the paper has 72.77 M
    assert trained(Polyhistor(tasks=TASKS), model=SWIN_T) == 6_372_064
    assert trained(PolyhistorLite(tasks=TASKS), model=SWIN_T) == 407_504  # 0.41 M
    widths = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    p, h, e, rank = 64, 128, 64, 6
    each = [
        (e + 1) * h + (h + 1) * p + 2 * p + (p + 1) * (2 * (c + c // 2) * rank + c + c // 2 + 2 * c) for c in widths
    ]
    assert trained(Polyhistor(tasks=TASKS), model=SWIN_T) == 4 * e + sum(each)


def test_one_network_for_all_blocks_of_a_width() -> None:
    own = trained(Hyperformer(sites=("attn", "mlp")), model=SWIN_T)
    shared = trained(Hyperformer(sites=("attn", "mlp"), share="width"), model=SWIN_T)
    assert shared < own / 5


def test_says_what_it_needs() -> None:
    assert Polyhistor().runs_per_task and PolyhistorLite().runs_per_task and Hyperformer().runs_per_task
    with pytest.raises(vpeft.MissingPlace, match="no multiple of the 16"):
        vpeft.tune(tiny_convnext(), PolyhistorLite(), show=False)
    with pytest.raises(vpeft.MissingPlace, match="too few for Polyhistor.reduction"):
        vpeft.tune(base_vit(), Polyhistor(reduction=64), show=False)
