"""Scores of a model on a data set: the same numbers every time, and no trace left in model or generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from vpeft.batch import Batch
from vpeft.errors import VpeftError
from vpeft.task import DEFAULT, Task, UnknownTask, get_task
from vpeft.training.batches import Batches, Samples
from vpeft.training.failures import NonFinite, first_not_finite
from vpeft.training.modes import evaluation_mode
from vpeft.training.optimisation import Precision
from vpeft.training.randomness import seed_everything, untouched_randomness
from vpeft.training.result import Scores

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UnsuitableData(VpeftError):
    """A data set that does not fit the model, or is empty."""


def task_of(tuned: nn.Module, dataset: Any, task: Task | None = None) -> Task:
    """The task that was given, else the one that the model's adapter was made for, else the usual one.

    It is bound to what `dataset` tells (label names) where it was not bound yet.
    """
    if task is not None and not isinstance(task, Task):
        raise UnknownTask(
            f"A task with its options is wanted, and {task!r} is none. Give one of vpeft.tasks, for instance"
            f" vpeft.get_task({DEFAULT!r})(); vpeft tasks lists them."
        )
    found = task if task is not None else getattr(tuned, "task", None)
    return (found if isinstance(found, Task) else get_task(DEFAULT)()).bind(dataset)


def evaluate(
    tuned: nn.Module,
    dataset: Samples,
    *,
    task: Task | None = None,
    batch: int = 64,
    workers: int = 0,
    precision: Precision = "fp32",
    records: Callable[..., Any] | None = None,
) -> Scores:
    """Score `tuned` on `dataset`.

    Args:
        tuned: the model; used where it is, in evaluation mode, and left as it was found.
        dataset: `len(dataset)` and `dataset[i]` -> (input, target), for images (C, H, W) and a class number.
        task: how it is judged; None: the task of the model's adapter, or else classification.
        batch: samples at a time; no influence on the scores but for rounding, and for transforms that draw at random.
        workers: processes that load samples; no influence on the scores.
        precision: arithmetic of the forward pass.
        records: runs the model on records of its frozen part, whose numbers `dataset` then has as inputs.

    Raises:
        UnsuitableData: no samples.
        UnsuitableTargets: a target that does not fit the task or the model.
        NonFinite: the outputs hold NaN or infinity, so that there is no score.
    """
    if len(dataset) == 0:
        raise UnsuitableData("There are no images to evaluate on: the data set is empty.")
    task = task_of(tuned, dataset, task)
    metric = task.metric()
    for outputs, some in outputs_of(tuned, dataset, task, batch, workers, precision, records):
        task.check_batch(outputs, some)
        metric.update(outputs, some)
    return scores_of(metric, task, len(dataset))


def outputs_of(
    tuned: nn.Module,
    dataset: Samples,
    task: Task,
    batch: int = 64,
    workers: int = 0,
    precision: Precision = "fp32",
    records: Callable[..., Any] | None = None,
) -> Iterator[tuple[Any, Batch]]:
    """The model's outputs for the batches of a data set, in its order, with the batches; all on the processor.

    The model is in evaluation mode while it runs, and draws the same random numbers each time.

    Raises:
        NonFinite: the outputs hold NaN or infinity.
    """
    device = next((tensor.device for tensor in (*tuned.parameters(), *tuned.buffers())), torch.device("cpu"))
    model = tuned if records is None else records
    batches = Batches(dataset, batch, workers=workers, reading=task)
    with torch.no_grad(), evaluation_mode(tuned), untouched_randomness():
        # A model that draws even in evaluation mode draws the same each time.
        seed_everything(0)
        for some in batches.epoch():
            there = some.to(device)
            with torch.autocast(device.type, _DTYPES.get(precision), enabled=precision != "fp32"):
                outputs = task.run(model, there)
            outputs = on_processor(outputs)
            if not finite(outputs):
                where = (first_not_finite(tuned, there) if records is None else None) or "the outputs"
                raise NonFinite(f"Evaluation met numbers that are not finite. The first such tensor is {where}.")
            yield outputs, some


def on_processor(outputs: Any) -> Any:
    """Outputs of any structure on the processor, floating-point tensors in single precision."""
    if isinstance(outputs, Tensor):
        outputs = outputs.detach()
        return (outputs.float() if outputs.is_floating_point() else outputs).cpu()
    if isinstance(outputs, dict):
        return {name: on_processor(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(on_processor(value) for value in outputs)
    return outputs


def finite(outputs: Any) -> bool:
    """Whether no tensor among the outputs holds NaN or infinity."""
    if isinstance(outputs, Tensor):
        return not outputs.is_floating_point() or bool(torch.isfinite(outputs).all())
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else ()
    return all(finite(part) for part in parts)


def scores_of(metric: Metric, task: Task, count: int) -> Scores:
    """What a metric has gathered, as scores: numbers by name, and what is more than a number as details."""
    values, details = dict[str, float](), dict[str, Any]()
    for name, value in metric.compute().items():
        if isinstance(value, Tensor):
            value = value.item() if value.numel() == 1 else value.tolist()
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values[name] = float(value)
        else:
            details[name] = value
    if task.labels:
        details.setdefault("labels", list(task.labels))
    leading = task.leading
    return Scores(
        values=values, leading=leading.name, higher_is_better=leading.higher_is_better, count=count, details=details
    )
