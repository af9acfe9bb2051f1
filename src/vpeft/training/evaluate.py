"""Evaluate a model on a data set. The result is the same every time; the model and random generators do not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from vpeft.arguments import COUNT, SAMPLES, one_of, require
from vpeft.batch import Batch
from vpeft.data.image_set import matched
from vpeft.errors import VpeftError
from vpeft.task import DEFAULT, Task, UnknownTask, get_task
from vpeft.training.batches import Batches, Samples
from vpeft.training.failures import NonFinite, first_not_finite
from vpeft.training.modes import evaluation_mode
from vpeft.training.optimisation import Precision
from vpeft.training.processes import Processes, present_processes
from vpeft.training.randomness import seed_everything, untouched_randomness
from vpeft.training.result import Scores

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UnsuitableData(VpeftError):
    """A data set does not fit the model, or is empty."""


def task_of(tuned: nn.Module, dataset: Any, task: Task | None = None) -> Task:
    """Return the given task, or the task of the model's adapter, or classification.

    The task is bound to the data set (label names), unless it is bound already.
    """
    if task is not None and not isinstance(task, Task):
        raise UnknownTask(
            f"{task!r} is not a task. Give a task with its options, for instance vpeft.get_task({DEFAULT!r})();"
            " `vpeft tasks` lists them."
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
    """Return the scores of `tuned` on `dataset`.

    Args:
        tuned: the model. It stays on its device, runs in evaluation mode, and does not change.
        dataset: `len(dataset)`, and `dataset[i]` -> (input, target), for instance (image (C, H, W), class number). One
            with an attribute `views` has so many views of each sample, one after the other, and their outputs are
            averaged (`Task.averaged`).
        task: the task, which defines the metric; None uses the task of the model's adapter, or classification.
        batch: batch size, of views where there are several. It does not change the scores, except by rounding or with
            random transforms.
        workers: number of loading processes; it does not change the scores.
        precision: arithmetic of the forward pass.
        records: the model on cached outputs of its frozen part; `dataset` then has row numbers of the cache as inputs.

    Raises:
        UnsuitableData: the data set is empty.
        DataError: the data set names labels that the task does not know. Known ones are matched by name.
        UnsuitableTargets: a target does not fit the task or the model.
        NonFinite: the outputs contain NaN or infinity.
    """
    require(
        "evaluate(tuned, dataset)",
        tuned=(tuned, one_of(nn.Module, says="a TunedModel, or another torch.nn.Module")),
        dataset=(dataset, SAMPLES),
    )
    require("evaluate(tuned, dataset)", batch=(batch, COUNT), workers=(workers, COUNT))
    if len(dataset) == 0:
        raise UnsuitableData("There are no images to evaluate on: the data set is empty.")
    task = task_of(tuned, dataset, task)
    # Only there do the names of another library's data set name what the numbers mean.
    if task.target_kind == "label" and task.data_labels:
        dataset = matched(dataset, task.data_labels)
    metric = task.metric()
    views = getattr(dataset, "views", 1)
    processes = present_processes()
    parts = _parts(len(dataset) // views, max(1, batch // views), views, processes)
    if processes.several and parts is None:  # every process has all of it
        for one in metric.modules():
            if isinstance(one, Metric):
                one.sync_on_compute = one._to_sync = False
    for outputs, some in outputs_of(tuned, dataset, task, batch, workers, precision, records, parts):
        task.check_batch(outputs, some)
        metric.update(outputs, some)
    return scores_of(metric, task, len(dataset) // views)


def _parts(samples: int, batch: int, views: int, processes: Processes) -> list[range] | None:
    """Return the positions of each batch of this process's share; None where it evaluates everything.

    A share is a contiguous piece of the data set, so that metrics that gather samples have them in the order of one
    process. Every process has the same number of batches, as divided weights ask for.
    """
    if samples < 2 * processes.count or not processes.several:
        return None
    most = -(-samples // processes.count)
    count = min(-(-most // batch), samples // processes.count)
    pieces = _pieces(range(samples), processes.count)[processes.number]
    return [range(piece.start * views, piece.stop * views) for piece in _pieces(pieces, count)]


def _pieces(positions: range, count: int) -> list[range]:
    """Cut a range into `count` pieces of as equal lengths as possible."""
    each, rest = divmod(len(positions), count)
    ends = [number * each + min(number, rest) for number in range(count + 1)]
    return [positions[first:last] for first, last in pairwise(ends)]


def outputs_of(
    tuned: nn.Module,
    dataset: Samples,
    task: Task,
    batch: int = 64,
    workers: int = 0,
    precision: Precision = "fp32",
    records: Callable[..., Any] | None = None,
    parts: Sequence[range] | None = None,
) -> Iterator[tuple[Any, Batch]]:
    """Return (outputs, batch) for all batches of a data set, in its order, on the CPU; `parts` states other batches.

    The model runs in evaluation mode, with the same random numbers each time. Of samples with several views, the
    outputs are averaged, and the batch has the inputs of their first views.

    Raises:
        NonFinite: the outputs contain NaN or infinity.
    """
    device = next((tensor.device for tensor in (*tuned.parameters(), *tuned.buffers())), torch.device("cpu"))
    model = tuned if records is None else records
    views = getattr(dataset, "views", 1)
    if views > 1:
        batch = max(1, batch // views) * views  # whole samples
    batches = Batches(dataset, batch, workers=workers, reading=task, parts=parts)
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
                raise NonFinite(f"Evaluation found numbers that are not finite. The first such tensor is {where}.")
            yield (outputs, some) if views == 1 else (task.averaged(outputs, views), _of_first_views(some, views))


def _of_first_views(batch: Batch, views: int) -> Batch:
    """The batch of every `views`-th input."""
    parts = [batch[number : number + 1] for number in range(0, len(batch), views)]
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        tuple(name for part in parts for name in part.ids),
        batch.task,
    )


def on_processor(outputs: Any) -> Any:
    """Move outputs of any structure to the CPU, floating-point tensors in single precision."""
    if isinstance(outputs, Tensor):
        outputs = outputs.detach()
        return (outputs.float() if outputs.is_floating_point() else outputs).cpu()
    if isinstance(outputs, dict):
        return {name: on_processor(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(on_processor(value) for value in outputs)
    return outputs


def finite(outputs: Any) -> bool:
    """Whether no tensor among the outputs contains NaN or infinity."""
    if isinstance(outputs, Tensor):
        return not outputs.is_floating_point() or bool(torch.isfinite(outputs).all())
    parts = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else ()
    return all(finite(part) for part in parts)


def scores_of(metric: Metric, task: Task, count: int) -> Scores:
    """Return the result of a metric as scores: numbers as values, everything else as details."""
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
