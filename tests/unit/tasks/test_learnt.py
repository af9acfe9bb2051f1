"""Each task and head on tuned models: the loss falls, the scores are good, and a saved adapter says the same again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from torch.utils.data import TensorDataset

import vpeft
from vpeft.backbones.features import Feature, Features
from vpeft.batch import Sample, collate
from vpeft.methods import LinearProbe, LoRA
from vpeft.task import Task, get_task
from vpeft.training.concurrent_run import Run
from vpeft.training.evaluate import evaluate
from vpeft.training.optimisation import Optimisation
from vpeft.training.together import fit_together

LABELS = ("a", "b", "c")


def _data(kind: str, side: int = 32) -> TensorDataset:
    """24 images whose brightness tells what is to be learnt; the right halves of those with masks are brighter."""
    draw = torch.Generator().manual_seed(0)
    classes = torch.arange(24) % 3
    images = torch.randn(24, 3, side, side, generator=draw) * 0.3
    images += (classes - 1)[:, None, None, None] * torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    if kind == "mask":
        images[..., side // 2 :] += 2
        masks = torch.zeros(24, side, side, dtype=torch.int64)
        masks[..., side // 2 :] = 1
        masks[:, 0, 0] = 255
        return TensorDataset(images, masks)
    targets = {
        "label": classes,
        "labels": torch.stack([classes != 2, classes == 2, classes == 1], 1).float(),
        "values": 100 + 10.0 * classes,
    }
    return TensorDataset(images, targets[kind])


@pytest.mark.parametrize(
    ("name", "kind", "options", "least"),
    [
        (
            "classification",
            "label",
            {"mixup": 0.2, "calibrate": True, "sampling": "balanced", "class_weights": "balanced"},
            0.9,
        ),
        ("classification", "label", {"head_kind": "attentive", "loss_kind": "focal"}, 0.9),
        ("classification", "label", {"head_kind": "last_k(k=2)"}, 0.9),
        ("classification", "label", {"head_kind": "batchnorm_linear"}, 0.9),
        ("multilabel", "labels", {"positive_weights": "balanced", "choose_thresholds": True}, 0.9),
        ("regression", "values", {"loss_kind": "huber", "labels": ()}, -3.0),
        ("regression", "values", {"ordinal": True, "labels": (), "head_kind": "coral"}, None),
        ("semantic_segmentation", "mask", {"labels": LABELS[:2], "dice": 0.5}, 0.9),
    ],
)
@pytest.mark.parametrize("model", [tiny_vit, tiny_swin])
def test_a_task_is_learnt_saved_and_loaded(
    model: Any, name: str, kind: str, options: dict[str, Any], least: float | None, tmp_path: Path
) -> None:
    backbone, data = model(), _data(kind)
    if options.get("ordinal"):
        data = TensorDataset(data.tensors[0], (data.tensors[1] - 100) // 10)
    twin = copy.deepcopy(backbone)
    task = get_task(name)(**{"labels": LABELS, **options}).bind(data)
    torch.manual_seed(0)
    tuned = vpeft.tune(backbone, LoRA(rank=2), task=task, show=False)
    settings = Optimisation(epochs=8, batch=8, lr=5e-3, device="cpu")
    result = vpeft.fit(tuned, data, data, optimisation=settings, progress=False)
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    scores = evaluate(tuned, data)
    assert scores.leading == task.leading.name and scores.count == 24
    if least is not None:
        assert (scores.value if task.leading.higher_is_better else -scores.value) > least
    images = data.tensors[0][:4]
    tuned.save(tmp_path / "adapter.safetensors")
    again = vpeft.load(twin, tmp_path / "adapter.safetensors")
    assert again.task == tuned.task and type(again.task) is type(task)
    with torch.no_grad():
        outputs = tuned(images)
        assert torch.equal(again(images), outputs)
    predictions = tuned.task.predictions(outputs, tuned.task.collate([(image, None) for image in images]))
    assert len(predictions) == 4 and all(one.rows or one.values for one in predictions)


def _tokens(model: Any, images: torch.Tensor) -> Feature:
    """What leaves the final norm, or the last block where the norm comes after the pooling, by the library itself."""
    found = model.forward_features(images)
    if found.dim() == 3:
        return Feature(found, prefix=1, grid=(4, 4))
    # timm's ConvNeXt is channels first, its Swin channels last.
    found = found.movedim(1, -1) if found.shape[1] == 48 else found
    return Feature(found, grid=(found.shape[1], found.shape[2]))


@pytest.mark.parametrize("kind", ["attentive", "linear_map"])
@pytest.mark.parametrize("model", [tiny_vit, tiny_swin, tiny_convnext])
def test_heads_read_what_the_library_computes(model: Any, kind: str) -> None:
    backbone = model()
    images = torch.randn(2, 3, 64 if model is tiny_convnext else 32, 64 if model is tiny_convnext else 32)
    with torch.no_grad():
        found, outlet = _tokens(backbone, images), backbone.forward_head(backbone.forward_features(images))
    name = "semantic_segmentation" if kind == "linear_map" else "classification"
    tuned = vpeft.tune(backbone, LinearProbe(), task=get_task(name)(labels=LABELS, head_kind=kind), show=False).eval()
    head: Any = tuned.head
    with torch.no_grad():
        expected = head(Features({head.reads[0]: found, "outlet": Feature(outlet)}))
        torch.testing.assert_close(tuned(images), expected)


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression", "semantic_segmentation"])
def test_records_of_the_frozen_part_may_stand_for_the_inputs(name: str) -> None:
    """A task that put samples together by itself would be fed item by item where records come in whole batches."""
    kind = get_task(name)
    assert kind.stacks_inputs
    if kind.collate is not Task.collate:  # then it puts rows of records together as the default does
        samples = [Sample(torch.full((4,), float(k)), torch.zeros(2, 2, dtype=torch.int64), str(k)) for k in range(3)]
        own, plain = kind().collate(samples), collate(samples)
        assert torch.equal(own.inputs, plain.inputs) and torch.equal(own.targets, plain.targets)


def test_runs_side_by_side_see_what_their_own_sampling_chooses() -> None:
    """Runs of one order share their batches; a run that samples in another way does not get theirs."""
    images = _data("label").tensors[0]
    data, backbone = TensorDataset(images, (torch.arange(24) > 17).long()), tiny_vit()
    settings = Optimisation(epochs=2, batch=8, device="cpu", acceleration="off")
    options: list[dict[str, Any]] = [{}, {"sampling": "balanced"}, {}, {"sampling": "weighted"}]

    def made(one: dict[str, Any]) -> Any:
        task = get_task("classification")(labels=LABELS[:2], **one)
        torch.manual_seed(0)
        return vpeft.tune(copy.deepcopy(backbone), LoRA(rank=2), task=task, show=False)

    alone = [
        [epoch.train_loss for epoch in vpeft.fit(made(one), data, optimisation=settings, progress=False).history]
        for one in options
    ]
    together = fit_together([Run(made(one), settings) for one in options], data, progress=False)
    assert [[epoch.train_loss for epoch in result.history] for result in together] == alone
    assert alone[0] == alone[2] and alone[0] != alone[1] != alone[3]
