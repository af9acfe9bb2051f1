"""Meta-learning a base: the paper's linear model with its numbers, gradients through inner steps, and a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vpeft
from vpeft.cli import main
from vpeft.regimes.meta_gradients import Order, Tensors, meta_gradients
from vpeft.regimes.meta_learning import CannotMetaLearn, MetaSettings, meta_learn, save_base
from vpeft.tasks.classification import Classification


class Linear:
    """Tasks y = (A* + U_t* U_t*^T) x of the paper's linear model with infinite data: losses are norms."""

    def __init__(self, width: int, tasks: int, rank: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.width, self.rank, self.generator = width, rank, generator
        self.base = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        self.steps = {str(t): self._step() for t in range(tasks)}

    def _step(self) -> Tensor:
        u = torch.randn(self.width, self.rank, generator=self.generator, dtype=torch.float64) / self.width**0.5
        step: Tensor = u @ u.T
        return step

    def loss(self, task: str, shared: Tensors, own: Tensors) -> Tensor:
        """||A* + R_t* - A - U_t U_t^T||_F^2."""
        rest: Tensor = self.base + self.steps[task] - shared["A"] - own["U"] @ own["U"].T
        return rest.square().sum()

    def start(self) -> dict[str, Tensors]:
        shape = (self.width, self.rank)
        return {t: {"U": torch.randn(shape, generator=self.generator, dtype=torch.float64)} for t in self.steps}

    def retrained(self) -> Tensor:
        """The base that minimises the joint objective, by L-BFGS."""
        shared, own = torch.zeros_like(self.base).requires_grad_(), self.start()
        tensors = [shared, *(one["U"].requires_grad_() for one in own.values())]
        optimiser = torch.optim.LBFGS(
            tensors, max_iter=4000, history_size=40, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            found = meta_gradients(self.loss, {"A": shared}, own)
            shared.grad = found.shared["A"]
            for task, one in own.items():
                one["U"].grad = found.own[task]["U"]
            return found.loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return shared.detach()


def ranks_above(matrix: Tensor, size: float) -> int:
    return int((torch.linalg.svdvals(matrix) > size).sum())


@pytest.mark.parametrize(("width", "tasks", "rank"), [(10, 3, 1), (10, 3, 2), (12, 5, 2)])
def test_three_tasks_or_more_recover_the_shared_part(width: int, tasks: int, rank: int) -> None:
    """Then a new task needs a step of rank k; on the mean of the tasks it needs one of rank k (T + 1)."""
    model = Linear(width, tasks, rank)
    found = model.retrained()
    assert float((found - model.base).norm()) < 1e-3 * float(model.base.norm())
    mean = model.base + sum(model.steps.values()) / tasks
    new = model.base + model._step()
    assert ranks_above(new - found, 1e-3) == rank
    assert ranks_above(new - mean, 1e-3) == min(width, rank * (tasks + 1))


def test_two_tasks_leave_an_error_of_rank_two_k() -> None:
    model = Linear(12, 2, 2)
    found = model.retrained()
    error = found - model.base
    assert float(error.norm()) > 0.05 * float(model.base.norm())
    assert ranks_above(error, 1e-3) <= 4
    assert ranks_above(model.base + model._step() - found, 1e-3) <= 6  # the new adapter gets rank 3 k


@pytest.mark.parametrize("order", ["first", "second"])
def test_inner_steps_that_go_on_recover_the_shared_part_too(order: Order) -> None:
    model = Linear(8, 3, 1)
    shared = {"A": torch.zeros_like(model.base)}
    own = {task: {"U": 0.3 * one["U"]} for task, one in model.start().items()}
    for _ in range(120):
        found = meta_gradients(model.loss, shared, own, order=order, inner_steps=3, inner_lr=0.02)
        shared, own = {"A": shared["A"] - 0.1 * found.shared["A"]}, found.reached
    mean = model.base + sum(model.steps.values()) / 3
    error, of_mean = (float((one - model.base).norm()) for one in (shared["A"], mean))
    assert error < 0.2 * of_mean


def test_second_order_is_the_derivative_of_the_loss_behind_the_inner_steps_and_first_order_is_not() -> None:
    model = Linear(5, 2, 1)
    shared, own = {"A": torch.zeros_like(model.base)}, model.start()

    def behind(base: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for task, one in own.items():
            u = one["U"]
            for _ in range(3):  # the gradient of the loss, by hand
                rest = model.base + model.steps[task] - base - u @ u.T
                u = u + 0.01 * 2 * (rest + rest.T) @ u
            total = total + (model.base + model.steps[task] - base - u @ u.T).square().sum() / 2
        return total

    base = shared["A"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(behind(base), base)
    options: dict[str, Any] = {"inner_steps": 3, "inner_lr": 0.01}
    second = meta_gradients(model.loss, shared, own, order="second", **options)
    first = meta_gradients(model.loss, shared, own, order="first", **options)
    torch.testing.assert_close(second.shared["A"], expected)
    assert second.loss == pytest.approx(first.loss) == pytest.approx(float(behind(base).detach()))
    assert not torch.allclose(first.shared["A"], expected, rtol=1e-2)


# -- a backbone --------------------------------------------------------------------------------------------------------


def base() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)


def tasks(count: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"t{number}": (
            Classification(labels=("x", "y")),
            [(torch.randn(3, 16, 16, generator=generator) + (n % 2) * (-1) ** number, n % 2) for n in range(16)],
        )
        for number in range(count)
    }


@pytest.mark.parametrize("order", ["joint", "first", "second"])
def test_the_base_moves_and_is_plain_afterwards(order: Order) -> None:
    model = base()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    settings = MetaSettings(
        method="lora(rank=1)", order=order, steps=12, batch=8, lr=1e-3, adapter_lr=1e-2, inner_steps=2
    )
    losses = meta_learn(model, tasks(), settings)
    assert len(losses) == 12 and losses[-1] < losses[0]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert sum(not torch.equal(after[key], before[key]) for key in before) > 10
    again = base()
    assert meta_learn(again, tasks(), settings) == losses
    assert all(torch.equal(value, after[key]) for key, value in again.state_dict().items())
    tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=1), num_classes=2)  # its hooks are gone
    assert tuned(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_plain_retraining_moves_the_base_alone() -> None:
    settings = MetaSettings(method="lora(rank=1)", steps=4, batch=8, lr=1e-3, adapter_lr=1e-2)
    model, plain = base(), base()
    meta_learn(model, tasks(), settings)
    losses = meta_learn(plain, tasks(), settings, adapt=False)
    assert losses[-1] < losses[0]
    assert not torch.equal(
        model.state_dict()["blocks.0.attn.qkv.weight"], plain.state_dict()["blocks.0.attn.qkv.weight"]
    )


def test_what_does_not_suit_is_named() -> None:
    with pytest.raises(CannotMetaLearn, match="No source task"):
        meta_learn(base(), {})
    with pytest.raises(CannotMetaLearn, match="no images of 't1'"):
        meta_learn(base(), {**tasks(1), "t1": (Classification(labels=("x", "y")), [])})
    with pytest.raises(CannotMetaLearn, match="bitfit trains tensors of the backbone"):
        meta_learn(base(), tasks(), MetaSettings(method="bitfit", steps=1))


def test_a_saved_base_has_a_digest_of_its_own(tmp_path: Path) -> None:
    model = vpeft.create_backbone("pocket_vit")
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    path = save_base(model, tmp_path / "base.safetensors")
    again = vpeft.create_backbone("pocket_vit", weights=path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "base.safetensors"
    words = ["meta", "--source", "pocket/orientation,pocket/handwriting", "--steps", "2", "--batch", "4"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    assert "base.safetensors" in capsys.readouterr().out
    new, old = vpeft.create_backbone("pocket_vit", weights=out), vpeft.create_backbone("pocket_vit")
    assert any(not torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))
    assert main(["meta", "--out", str(out)]) == 1
    assert "--source" in capsys.readouterr().err
