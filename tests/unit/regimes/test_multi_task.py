"""Several tasks in one training: what mixes, what weighs, what is told, and that nothing leaks between tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.injection.test_several_tasks import PerTask
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.batch import Batch
from vpeft.data.task_mixture import NoSamples, TaskMixture, mixed_order, shares
from vpeft.method import Method
from vpeft.method_spec import parse_one
from vpeft.methods import LinearProbe, LoRA
from vpeft.regimes.multi_task import NotSeveral, fit_tasks
from vpeft.task import BadOption, UnsuitableTargets
from vpeft.tasks.classification import Classification
from vpeft.tasks.depth import Depth
from vpeft.tasks.multi_task import MultiTask
from vpeft.tasks.semantic_segmentation import SemanticSegmentation
from vpeft.tasks.task_balance import GradientNorm, NoComparison, Uncertainty
from vpeft.training.optimisation import Optimisation

PARTS = {
    "regions": SemanticSegmentation(labels=("dark", "light")),
    "depth": Depth(head="linear_map", scale=1.0),
    "turn": Classification(labels=("one", "other")),
}
QUICK = Optimisation(epochs=2, batch=4, lr=1e-2, warmup=0)


def pictures(count: int, seed: int = 0) -> list[tuple[Tensor, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        image = torch.randn(3, 32, 32, generator=generator)
        targets = {"regions": (image[0] > 0).long(), "depth": image[1].abs() + 0.5, "turn": number % 2}
        found.append((image, targets))
    return found


def apart(samples: list[tuple[Tensor, dict[str, Any]]], counts: dict[str, int]) -> dict[str, Any]:
    return {name: [(image, targets[name]) for image, targets in samples[:count]] for name, count in counts.items()}


def made(method: Any = None, parts: dict[str, Any] | None = None, **options: Any) -> vpeft.TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), method or LoRA(rank=2), task=MultiTask(parts=parts or PARTS, **options))


def trained(tuned: vpeft.TunedModel, *given: Any, **options: Any) -> Any:
    return fit_tasks(tuned, *given, **{"optimisation": QUICK, "progress": False, **options})


def test_one_batch_carries_targets_for_all_and_each_loss_is_told() -> None:
    result = trained(made(), pictures(8), pictures(6, seed=1), weights={"depth": 2.0})
    last = result.history[-1]
    assert {"regions/loss", "depth/loss", "turn/loss"} <= set(last.train)
    assert last.train["depth/silog"] == pytest.approx(2.0 * last.train["depth/loss"], rel=1e-6)
    assert last.train_loss == pytest.approx(
        last.train["regions/loss"] + 2 * last.train["depth/loss"] + last.train["turn/loss"], rel=1e-6
    )
    assert {"regions/miou", "depth/abs_rel", "turn/top1", "loss"} <= set(result.val.values)


def test_scores_of_each_task_are_those_of_its_own_metric() -> None:
    tuned, samples = made(), pictures(5)
    both = vpeft.evaluate(tuned, samples, batch=2).values
    for name, task in PARTS.items():
        model = tuned.eval()
        metric = task.metric()
        for image, targets in samples:
            part = task.collate([(image, targets[name])])
            with torch.no_grad():
                metric.update(model(part.inputs, batch=part.with_(task=name)), part)
        for key, value in metric.compute().items():
            if isinstance(value, float):
                assert both[f"{name}/{key}"] == pytest.approx(value, rel=1e-5), (name, key)


def test_separate_samples_of_unequal_numbers_are_scored_whole() -> None:
    counts = {"regions": 8, "depth": 5, "turn": 3}
    tuned = made()
    result = trained(tuned, apart(pictures(8), counts), apart(pictures(8, seed=1), counts))
    for name, one in PARTS.items():
        mixture = TaskMixture(apart(pictures(8, seed=1), {name: counts[name]}))
        alone = vpeft.evaluate(tuned, mixture, task=MultiTask(parts={name: one}))
        leading = f"{name}/{PARTS[name].leading.name}"
        assert alone.values[leading] == pytest.approx(result.val.values[leading], rel=1e-5)


@pytest.mark.parametrize("mixing", ["proportional", "temperature", "round_robin"])
def test_each_batch_is_of_one_task_and_each_task_has_its_share(mixing: Any) -> None:
    mixture = TaskMixture({"a": range(60), "b": range(20), "c": range(4)})
    orders = [mixed_order(mixture, torch.randperm(84).tolist(), 4, mixing, 2.0, seed) for seed in range(40)]
    owner = {index: name for name, span in mixture.ranges.items() for index in span}
    counted: Counter[str] = Counter()
    for order in orders:
        assert len(order) == 84
        for first in range(0, 84, 4):
            (task,) = {owner[index] for index in order[first : first + 4]}
            counted[task] += 1
    expected = {
        "proportional": {"a": 60.0, "b": 20.0, "c": 4.0},
        "temperature": {"a": 60**0.5, "b": 20**0.5, "c": 2.0},
        "round_robin": dict.fromkeys("abc", 1.0),
    }[mixing]
    for name, share in expected.items():
        assert abs(counted[name] / 40 - 21 * share / sum(expected.values())) < 1, name
    if mixing == "round_robin":
        assert [owner[index] for index in orders[0][:24:4]] == ["a", "b", "c"] * 2


def test_a_task_sees_each_of_its_samples_before_any_again() -> None:
    mixture = TaskMixture({"a": range(12), "b": range(4)})
    order = mixed_order(mixture, list(range(16)), 4, "proportional", 1.0, 0)
    assert sorted(order) == list(range(16))
    assert shares({"a": 100, "b": 1}, "temperature", 2.0) == pytest.approx({"a": 10 / 11, "b": 1 / 11})


def test_gradients_reach_the_tasks_of_the_batch_alone() -> None:
    tuned, whole = made(), MultiTask(parts=PARTS)
    batch = whole.collate([(image, {"depth": targets["depth"]}) for image, targets in pictures(4)])
    assert batch.task == "depth"
    sum(whole.loss(whole.run(tuned, batch), batch).values()).backward()
    touched = {key for key, one in tuned.trainable() if one.grad is not None and bool(one.grad.any())}
    assert {key for key in touched if key.startswith("head.")} == {"head.depth.conv.weight", "head.depth.conv.bias"}
    assert any(not key.startswith("head.") for key in touched)


def test_uncertainty_is_the_formula() -> None:
    balance = Uncertainty(["a", "b"])
    with torch.no_grad():
        balance.log_variance["a"].fill_(0.7)
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}
    total = sum(balance.combined(losses, {}).values())
    assert float(total.detach()) == pytest.approx(math.exp(-0.7) * 2 + 0.35 + 5.0)
    total.backward()
    assert float(balance.log_variance["a"].grad) == pytest.approx(-math.exp(-0.7) * 2 + 0.5)
    assert balance.weights()["a"] == pytest.approx(math.exp(-0.7))


def test_gradient_norm_restated() -> None:
    torch.manual_seed(3)
    shared = torch.randn(4, 6, requires_grad=True)
    feature = shared * 2
    maps = {name: torch.randn(6) * size for name, size in (("a", 1.0), ("b", 9.0))}
    balance = GradientNorm(["a", "b"])

    def losses(of: Tensor) -> dict[str, Tensor]:
        return {name: (of @ weight).square().mean() for name, weight in maps.items()}

    with torch.no_grad():
        balance.first.copy_(torch.tensor([4.0, 900.0]))
        balance.scores.copy_(torch.tensor([0.3, -0.2]))
    parts = balance.combined(losses(feature), {name: [feature] for name in maps})
    sum(parts.values()).backward()

    w = 2 * torch.tensor([0.3, -0.2]).softmax(0)
    norms, now = [], []
    for weight in maps.values():
        one = feature.detach().requires_grad_()
        loss = (one @ weight).square().mean()
        norms.append(torch.autograd.grad(loss, one)[0].norm())
        now.append(loss.detach())
    g, ratio = w * torch.stack(norms), torch.stack(now) / torch.tensor([4.0, 900.0])
    target = g.mean() * (ratio / ratio.mean()) ** 1.5
    scores = torch.tensor([0.3, -0.2], requires_grad=True)
    ((2 * scores.softmax(0) * torch.stack(norms)) - target).abs().sum().backward()
    torch.testing.assert_close(balance.scores.grad, scores.grad, rtol=1e-5, atol=1e-6)
    again = shared.detach().requires_grad_()
    sum(weight * loss for weight, loss in zip(w, losses(again * 2).values(), strict=True)).backward()
    torch.testing.assert_close(shared.grad, again.grad, rtol=1e-5, atol=1e-6)


def test_gradient_norm_brings_the_gradients_together() -> None:
    tuned = made(parts={name: PARTS[name] for name in ("regions", "turn")})
    samples = [(image, {name: targets[name] for name in ("regions", "turn")}) for image, targets in pictures(8)]
    trained(tuned, samples, weights="gradient-norm", epochs=6)
    weights = tuned.head.balance.weights()
    assert sum(weights.values()) == pytest.approx(2.0)
    assert weights["turn"] != pytest.approx(1.0, abs=1e-3)


def test_weighing_by_gradients_needs_all_tasks_and_something_that_trains() -> None:
    counts = {"regions": 8, "depth": 8, "turn": 8}
    with pytest.raises(NoComparison, match="targets for .* of regions, depth, turn"):
        trained(made(), apart(pictures(8), counts), weights="gradient_norm")
    with pytest.raises(NoComparison, match="nothing before the heads trains"):
        trained(made(LinearProbe()), pictures(8), weights="gradient_norm")


@pytest.mark.parametrize("weights", ["fixed", "uncertainty", "gradient_norm"])
def test_a_resumed_run_is_bit_equal(weights: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(tuned: Any, record: Any) -> None:
        raise Stop

    settings = Optimisation(epochs=2, batch=4, lr=1e-2, warmup=0, checkpoint_steps=1)
    task = MultiTask(parts=PARTS, balance=weights)
    whole = made(balance=weights)
    vpeft.fit(whole, pictures(8), pictures(4), optimisation=settings, task=task, progress=False)
    cut = made(balance=weights)
    with pytest.raises(Stop):
        vpeft.fit(
            cut, pictures(8), pictures(4), optimisation=settings, task=task, out=tmp_path, progress=False,
            after_epoch=stop,
        )  # fmt: skip
    again = made(balance=weights)
    result = vpeft.fit(again, pictures(8), pictures(4), optimisation=settings, task=task, out=tmp_path, progress=False)
    assert result.resumed_at
    for key, value in whole.adapter_state().items():
        assert torch.equal(value, again.adapter_state()[key]), key


def test_the_file_has_all_heads_and_not_what_weighed_them(tmp_path: Path) -> None:
    tuned = made()
    trained(tuned, pictures(8), weights="uncertainty", singles={"regions": 0.5, "depth": 0.4, "turn": 0.6})
    path = tuned.save(tmp_path / "a.safetensors")
    torch.manual_seed(0)
    again = vpeft.load(tiny_vit(), path)
    assert not any("balance" in key for key in again.adapter_state())
    assert again.task.singles == {"regions": 0.5, "depth": 0.4, "turn": 0.6}
    scores = [vpeft.evaluate(one, pictures(4, seed=2)) for one in (tuned, again)]
    assert scores[0].values == scores[1].values
    assert scores[0].leading == "delta_m"


def test_delta_m_is_the_mean_gain_in_per_cent() -> None:
    task = MultiTask(parts=PARTS).with_singles({"regions": 0.5, "depth": 0.2, "turn": 0.8})
    assert task.delta({"regions": 0.55, "depth": 0.25, "turn": 0.8}) == pytest.approx((10 - 25 + 0) / 3)
    assert MultiTask(parts=PARTS).leading.name == "loss"
    assert task.leading.name == "delta_m"


def test_the_prediction_names_each_task() -> None:
    tuned, whole = made(), MultiTask(parts=PARTS)
    images = torch.stack([image for image, _ in pictures(2)])
    said = whole.predictions(tuned.eval()(images), Batch(images, ids=("x", "y")))
    assert [one.id for one in said] == ["x", "y"]
    assert [row["task"] for row in said[0].rows] == ["regions", "depth", "turn"]
    assert set(said[0].values) == set(PARTS)


def test_options_survive_text_and_json() -> None:
    spec = parse_one("multi_task(tasks=[semantic, depth], balance=gradient-norm)", "task")
    task = MultiTask(**spec.fields)
    assert task.task_names == ("semantic", "depth")
    assert task.balance == "gradient_norm"
    assert task.target_kind == "mask+depth"
    again = MultiTask(**MultiTask(parts=PARTS).model_dump(mode="json"))
    assert again.parts == PARTS


def test_mistakes_are_said() -> None:
    with pytest.raises(BadOption, match="weights names x, and the tasks are regions"):
        MultiTask(parts=PARTS, weights={"x": 1.0})
    with pytest.raises(BadOption, match="one of fixed, uncertainty, gradient_norm"):
        MultiTask(parts=PARTS, balance="magic")
    with pytest.raises(BadOption, match="mixes images"):
        MultiTask(parts={"a": Classification(mixup=0.2)})
    with pytest.raises(NotSeveral, match="heads for regions, depth, turn, and the tasks are regions"):
        trained(made(), pictures(4), tasks={"regions": PARTS["regions"]})
    with pytest.raises(NotSeveral, match="one task"):
        trained(vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=2), pictures(4))
    with pytest.raises(NotSeveral, match="no data for the task 'turn'"):
        trained(made(), apart(pictures(4), {"regions": 4, "depth": 4}))
    with pytest.raises(NoSamples, match="'turn' has no samples"):
        trained(made(), apart(pictures(4), {"regions": 4, "depth": 4, "turn": 0}))
    with pytest.raises(UnsuitableTargets, match="learns targets by task"):
        trained(made(), [(image, 1) for image, _ in pictures(4)])
    with pytest.raises(UnsuitableTargets, match="no target for the task 'turn'"):
        trained(made(), [(image, {"regions": t["regions"], "depth": t["depth"]}) for image, t in pictures(4)])


class InTheLastBlock(PerTask):
    """A layer of each task's own in the last block, so that all blocks before it are computed once."""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield list(super().edits(backbone))[-1]


@pytest.mark.parametrize("make", [LinearProbe, InTheLastBlock])
def test_kept_outputs_of_the_frozen_part_serve_every_task(make: type[Method]) -> None:
    found = []
    for acceleration in ("off", "frozen_prefix"):
        tuned = made(make())
        vpeft.fit(tuned, pictures(8), pictures(4), optimisation=QUICK, progress=False, acceleration=acceleration)
        found.append(tuned.adapter_state())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-5, msg=key)
