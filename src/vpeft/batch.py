"""What a data set gives and what a model is given: one sample, and a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

Inputs = Any
"""A tensor (B, ...), positional arguments as a tuple, or named ones as a mapping."""
Targets = Any
"""A tensor (B, ...), a list with one entry for each sample, a mapping of these, or None."""


class Sample(tuple[Any, Any]):
    """One item of a data set: (input, target), with an `id` that names it in messages and predictions."""

    id: str

    def __new__(cls, input: Any, target: Any = None, id: str = "") -> Self:
        made = super().__new__(cls, (input, target))
        made.id = id
        return made

    def __getnewargs__(self) -> tuple[Any, Any, str]:
        return self[0], self[1], self.id

    @property
    def input(self) -> Any:
        """What the model is given: an image (C, H, W), or whatever the task's `collate` takes."""
        return self[0]

    @property
    def target(self) -> Any:
        """What is to be learnt: a class number, a vector, a mask (H, W), or whatever the task's `collate` takes."""
        return self[1]


@dataclass(frozen=True)
class Batch:
    """Samples put together by a task's `collate`.

    Attributes:
        inputs: a tensor (R, ...), where R is the number of samples or a multiple of it (several views of each); a
            tuple of positional arguments or a mapping of named ones for a model that takes those.
        targets: a tensor, a list with one entry for each sample, a mapping of these, or None.
        ids: one name for each sample, where the data set has names.
        task: which of several tasks this batch belongs to; empty where there is one, or where the targets are a mapping
            with those of several tasks by name.
        size: number of samples; None takes it from the targets, the ids, or the inputs.
    """

    inputs: Inputs
    targets: Targets = None
    ids: tuple[str, ...] = ()
    task: str = ""
    size: int | None = field(default=None)

    def __len__(self) -> int:
        if self.size is not None:
            return self.size
        for part in (self.targets, self.ids or None, self.inputs):
            count = _count(part)
            if count is not None:
                return count
        return 0

    def __iter__(self) -> Iterator[Any]:
        """Inputs and targets, so that `inputs, targets = batch` reads well."""
        yield self.inputs
        yield self.targets

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch with every tensor in page-locked memory; the data loader calls it."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def with_(self, **changed: Any) -> Batch:
        """The batch with some attributes changed."""
        return replace(self, **changed)

    def of_task(self, task: str) -> Batch:
        """The batch as one of several tasks sees it: it names that task, and has that task's targets."""
        if self.task == task:
            return self
        targets = self.targets
        own = targets[task] if isinstance(targets, Mapping) and task in targets else targets
        return replace(self, targets=own, task=task, size=len(self))

    def split(self, parts: int) -> list[Batch]:
        """At most `parts` batches of as equal sizes as possible, in order (as `Tensor.tensor_split` cuts)."""
        count = len(self)
        parts = max(1, min(parts, count))
        if parts == 1:
            return [self]
        sizes = [count // parts + (1 if part < count % parts else 0) for part in range(parts)]
        made, first = [], 0
        for size in sizes:
            made.append(self[first : first + size])
            first += size
        return made

    def __getitem__(self, rows: slice) -> Batch:
        """The samples in a range, as a batch; tensors are views."""
        count = len(self)
        first, last, _ = rows.indices(count)

        def cut(part: Any) -> Any:
            if isinstance(part, Mapping):
                return {name: cut(value) for name, value in part.items()}
            if isinstance(part, tuple):
                return tuple(cut(value) for value in part)
            if isinstance(part, (Tensor, list)):
                each, rest = divmod(len(part), count) if count and _has_rows(part) else (0, 1)
                return part if rest else part[first * each : last * each]
            return part

        return replace(
            self,
            inputs=cut(self.inputs),
            targets=cut(self.targets),
            ids=self.ids[first:last],
            size=None if self.size is None else last - first,
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor of its inputs and targets changed."""

        def walk(part: Any) -> Any:
            if isinstance(part, Tensor):
                return change(part)
            if isinstance(part, Mapping):
                return {name: walk(value) for name, value in part.items()}
            if isinstance(part, (list, tuple)):
                return type(part)(walk(value) for value in part)
            return part

        return replace(self, inputs=walk(self.inputs), targets=walk(self.targets))


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)


def _has_rows(part: Any) -> bool:
    return not isinstance(part, Tensor) or part.dim() > 0


def _count(part: Any) -> int | None:
    """How many samples a part of a batch is of."""
    if isinstance(part, Tensor):
        return len(part) if part.dim() else None
    if isinstance(part, Mapping):
        return next((count for value in part.values() if (count := _count(value)) is not None), None)
    if isinstance(part, (list, tuple)) and part:
        inner = _count(part[0]) if isinstance(part, tuple) and isinstance(part[0], (Tensor, list, Mapping)) else None
        return inner if inner is not None else len(part)
    return None


def as_sample(item: Any) -> Sample:
    """A data set's item, (input, target) or a `Sample`, as a `Sample`."""
    if isinstance(item, Sample):
        return item
    if isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
        return Sample(item[0], item[1])
    return Sample(item)


def stacked(values: Sequence[Any]) -> Any:
    """Values of all samples as one tensor (B, ...): numbers and arrays of one shape become rows; others stay a list."""
    first = values[0] if values else None
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.stack(list(values)) if all(value.shape == first.shape for value in values) else list(values)
    if isinstance(first, Mapping):
        return {name: stacked([value[name] for value in values]) for name in first}
    if isinstance(first, bool | int):
        return torch.as_tensor(list(values), dtype=torch.int64)
    if isinstance(first, float):
        return torch.as_tensor(list(values), dtype=torch.float32)
    return list(values)


def collate(samples: Sequence[Any], task: str = "") -> Batch:
    """Samples of one shape as a batch: inputs (B, ...), targets as `stacked` puts them together, and the ids.

    Targets that are whole numbers of any type come as int64.
    """
    whole = [as_sample(sample) for sample in samples]
    ids = tuple(sample.id for sample in whole)
    targets = stacked([sample.target for sample in whole])
    if isinstance(targets, Tensor) and targets.dtype in _WHOLE:
        targets = targets.long()
    return Batch(stacked([sample.input for sample in whole]), targets, ids if any(ids) else (), task)


def run_model(model: Callable[..., Any], batch: Batch) -> Any:
    """The model's outputs for a batch; positional and named inputs are spread.

    A model that says `takes_batch` is also given the batch, into which its head may look.
    """
    more: dict[str, Any] = {"batch": batch} if getattr(model, "takes_batch", False) else {}
    if isinstance(batch.inputs, Mapping):
        return model(**batch.inputs, **more)
    if isinstance(batch.inputs, tuple):
        return model(*batch.inputs, **more)
    return model(batch.inputs, **more)
