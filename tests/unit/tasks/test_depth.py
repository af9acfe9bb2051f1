"""Depth against hand computation, pixel by pixel."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models import tiny_convnext, tiny_vit
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

import vpeft
from vpeft.batch import Batch
from vpeft.data.preprocessing import Preprocessing
from vpeft.methods.lora import LoRA
from vpeft.task import Leading, UnsuitableTargets, get_task
from vpeft.tasks.depth import Depth

SCALE = 2.0


def _draw(count: int = 4) -> tuple[Tensor, Tensor]:
    """Outputs at a quarter of the depths' size; a tenth of the pixels is not known, in all ways that there are."""
    draw = torch.Generator().manual_seed(0)
    depths = torch.rand(count, 8, 12, generator=draw) * 6 + 0.3
    for number, unknown in enumerate((math.nan, 0.0, -1.0, math.inf)):
        depths[number % count][torch.rand(8, 12, generator=draw) < 0.1] = unknown
    return torch.randn(count, 1, 2, 3, generator=draw), depths


def _pairs(outputs: Tensor, depths: Tensor, limit: float = math.inf) -> list[tuple[float, float]]:
    """(said, true) of each known pixel, the said one cut off at `limit`."""
    large = functional.interpolate(outputs, (8, 12), mode="bilinear", align_corners=False)[:, 0]
    found = []
    for z, true in zip(large.flatten().tolist(), depths.flatten().tolist(), strict=True):
        if math.isfinite(true) and 0 < true <= limit:
            found.append((min(limit, SCALE * math.exp(z)), true))
    return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_is_a_task() -> None:
    assert get_task("depth") is Depth
    assert (Depth().target_kind, Depth().leading) == ("depth", Leading("abs_rel", higher_is_better=False))
    task = Depth(loss="l1", scale=2.0, size=(64, 96), max_depth=10)
    assert Depth(**json.loads(json.dumps(task.model_dump(mode="json", by_alias=True)))) == task


@pytest.mark.parametrize("limit", [None, 4.0])
def test_scores(limit: float | None) -> None:
    outputs, depths = _draw()
    metric = Depth(scale=SCALE, max_depth=limit).metric()
    for first in (0, 2):
        metric.update(outputs[first : first + 2], Batch(None, depths[first : first + 2]))
    scores = metric.compute()
    pairs = _pairs(outputs, depths, math.inf if limit is None else limit)
    logs = [math.log(d) - math.log(t) for d, t in pairs]
    expected = {
        "rmse": math.sqrt(_mean([(d - t) ** 2 for d, t in pairs])),
        "abs_rel": _mean([abs(d - t) / t for d, t in pairs]),
        "mae": _mean([abs(d - t) for d, t in pairs]),
        "delta1": _mean([float(max(d / t, t / d) < 1.25) for d, t in pairs]),
        "delta2": _mean([float(max(d / t, t / d) < 1.25**2) for d, t in pairs]),
        "delta3": _mean([float(max(d / t, t / d) < 1.25**3) for d, t in pairs]),
        "silog": math.sqrt(_mean([e * e for e in logs]) - _mean(logs) ** 2),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert sum(row["pixels"] for row in scores["by_depth"]) == len(pairs)
    json.dumps(scores)
    assert len(Depth().report(scores)[0][2]) == len(scores["by_depth"])


def test_losses() -> None:
    outputs, depths = _draw()
    pairs = _pairs(outputs, depths)
    logs = [math.log(d) - math.log(t) for d, t in pairs]
    silog = math.sqrt(_mean([e * e for e in logs]) - 0.85 * _mean(logs) ** 2)
    found = Depth(scale=SCALE).loss(outputs, Batch(None, depths))
    assert found.keys() == {"silog"} and found["silog"].item() == pytest.approx(silog, rel=1e-5)
    found = Depth(scale=SCALE, loss="l1").loss(outputs, Batch(None, depths))
    assert found["l1"].item() == pytest.approx(_mean([abs(d - t) for d, t in pairs]) / SCALE, rel=1e-5)


def test_the_scale_of_an_image_is_forgiven_with_a_variance_focus_of_one() -> None:
    outputs, depths = _draw()
    task, batch = Depth(variance_focus=1.0), Batch(None, depths)
    torch.testing.assert_close(task.loss(outputs, batch), task.loss(outputs + 3, batch))


def test_auxiliary_outputs() -> None:
    outputs, depths = _draw()
    task, batch = Depth(scale=SCALE), Batch(None, depths)
    losses = task.loss({"logits": outputs, "auxiliary": outputs}, batch)
    assert losses["auxiliary"].item() == pytest.approx(0.4 * losses["silog"].item())


@pytest.mark.parametrize("loss", ["silog", "l1"])
def test_a_batch_in_which_nothing_is_known_has_no_loss_and_a_finite_gradient(loss: str) -> None:
    outputs = torch.randn(2, 1, 2, 3, requires_grad=True)
    task, nothing = Depth(loss=loss), Batch(None, torch.full((2, 8, 12), math.nan))
    (found,) = task.loss(outputs, nothing).values()
    found.backward()
    assert found == 0 and torch.equal(outputs.grad, torch.zeros_like(outputs))  # type: ignore[arg-type]
    metric = task.metric()
    metric.update(outputs.detach(), nothing)
    assert math.isnan(metric.compute()["rmse"])


def test_a_perfect_answer_has_a_finite_gradient() -> None:
    outputs = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (found,) = Depth(scale=3.0).loss(outputs, Batch(None, torch.full((1, 2, 2), 3.0))).values()
    found.backward()
    assert outputs.grad is not None and bool(torch.isfinite(outputs.grad).all())


def test_monitor_is_the_relative_error_of_each_sample() -> None:
    outputs = torch.zeros(2, 1, 1, 2)
    depths = torch.tensor([[[4.0, 4.0]], [[1.0, math.nan]]])
    assert Depth(scale=2.0).monitor(outputs, Batch(None, depths))["abs_rel"].item() == pytest.approx(0.5 + 1.0)


def test_the_scale_is_the_geometric_mean_of_the_training_depths() -> None:
    _, depths = _draw()
    known = depths[torch.isfinite(depths) & (depths > 0)]
    bound = Depth().bind(TensorDataset(torch.zeros(4, 3, 8, 12), depths))
    assert bound.scale == pytest.approx(known.double().log().mean().exp().item())
    assert Depth(scale=7.0).bind(TensorDataset(torch.zeros(4, 3, 8, 12), depths)).scale == 7.0


@pytest.mark.parametrize("head", ["linear_map", "segformer_map(channels=8)", "upernet(channels=8)"])
@pytest.mark.parametrize("make", [tiny_vit, tiny_convnext])
def test_heads_give_one_output(head: str, make: Any) -> None:
    model, task = make(), Depth(head=head, scale=2.0)
    tuned = (
        vpeft.tune(model, LoRA(), task=task)
        if make is tiny_vit
        else vpeft.tune(model, vpeft.methods.BitFit(), task=task)
    )
    size = vpeft.describe(model).inputs.size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.rand(2, *size) + 1)
    outputs = tuned.train()(images)
    task.check_batch(outputs, batch)
    sum(task.loss(outputs, batch).values()).backward()  # type: ignore[union-attr]


def test_depths_keep_their_values_and_predictions_come_back_at_the_original_size() -> None:
    task = Depth(scale=1.0, size=(32, 32))
    plain = Preprocessing(size=(64, 64), resize="shorter", mean=(0.5,) * 3, std=(0.5,) * 3)
    transform = task.transforms(plain, "none", False)
    image = Image.fromarray(np.zeros((50, 100, 3), dtype=np.uint8))
    depth = torch.full((50, 100), 3.0)
    depth[:, 50:] = 5.0
    pixels, shown = transform(image, depth)
    assert pixels.shape == (3, 32, 32)
    assert set(shown[:16].unique().tolist()) == {3.0, 5.0} and bool(shown[16:].isnan().all())
    sample = task.sample_of(image, transform, "a.png")
    (found,) = task.predictions(shown.nan_to_num(1.0).log()[None, None], task.collate([sample]))
    assert found.map is not None and found.map.shape == (50, 100) and found.id == "a.png"
    torch.testing.assert_close(found.map[:, :45], depth[:, :45])
    torch.testing.assert_close(found.map[:, 55:], depth[:, 55:])
    assert found.values["nearest"] == pytest.approx(3.0) and found.values["farthest"] == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 1]), "whole number 0.*learns"),
        (torch.zeros(2, 8, 12, dtype=torch.int64), "torch.int64.*semantic_segmentation"),
        (None, "no target"),
    ],
)
def test_targets_that_do_not_fit(targets: Any, said: str) -> None:
    with pytest.raises(UnsuitableTargets, match=said):
        Depth().check_batch(torch.zeros(2, 1, 2, 3), Batch(torch.zeros(2, 3, 8, 12), targets))
    with pytest.raises(UnsuitableTargets, match="samples, 1, rows"):
        Depth().check_batch(torch.zeros(2, 4, 2, 3), Batch(None, torch.ones(2, 8, 12)))


def test_the_scale_is_that_of_the_training_depths_of_a_folder_or_suite() -> None:
    """Their targets are made when they are asked for, behind the transform."""
    data = vpeft.open_data(vpeft.DataConfig(source="pocket-dense/scenes", target="depth", check="none"))
    train = data.prepared(Preprocessing(), Depth()).train
    looked = sorted({round(i * (len(train) - 1) / 63) for i in range(64)})
    depths = torch.cat([train[index].target.flatten() for index in looked])
    known = depths[torch.isfinite(depths) & (depths > 0)].double()
    assert len(train) > 64 and Depth().bind(train).scale == pytest.approx(known.log().mean().exp().item())
