"""Several tasks at once, on one adapter: each has its own head, loss and metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, field_serializer, field_validator, model_validator
from torch import Tensor, nn
from torchmetrics import Metric

from ..batch import Batch, Sample, as_sample
from ..data.image_set import ImageSet
from ..data.joint import Fitting
from ..data.joint_maps import maps_transform
from ..data.problems import DataWarning
from ..data.task_mixture import Mixing, TaskMixture, mixed_order
from ..errors import VpeftError
from ..injection.heads import Heads, made_head
from ..method_spec import parse_one
from ..task import BadOption, Leading, Prediction, Task, UnsuitableTargets, get_task, register_task
from .map_task import MapTask
from .targets import told_targets
from .task_balance import BalancedHeads, balance_of, balances, make_balance

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..data.preprocessing import Preprocessing

DELTA = "delta_m"
_ROWS = ":rows"


class NoParts(VpeftError):
    """Several tasks were asked for, and none is named, or one has no data."""


class _Kinds:
    """The kinds of targets of all parts, joined by +; "several" of the class."""

    def __get__(self, task: MultiTask | None, owner: type[MultiTask]) -> str:
        return "several" if task is None else "+".join(dict.fromkeys(one.target_kind for one in task.parts.values()))


@register_task("multi_task", short="multi")
class MultiTask(Task):
    """Several tasks learnt together; outputs are `{task: outputs}`, targets `{task: targets}`.

    The loss is the sum of the weighted losses of the tasks that a batch has targets for. The score is delta_m, the mean
    over the tasks of how much better, in per cent, each is than the measured single-task model in `singles`; without
    these, the mean loss.
    """

    target_kind: ClassVar[Any] = _Kinds()

    parts: dict[str, SerializeAsAny[Task]] = Field(default_factory=dict, alias="tasks")
    """the tasks by name: `[semantic, depth]`, or a mapping from names of yours to tasks with options"""
    weights: dict[str, float] = Field(default_factory=dict)
    """factor of the loss of each task; 1 where none is stated"""
    balance: str = "fixed"
    """what weighs the losses besides: fixed (nothing), uncertainty or gradient_norm"""
    mixing: Mixing = "proportional"
    """where each task has samples of its own: how often each has its turn"""
    temperature: float = Field(default=10.0, ge=1)
    """of mixing = temperature"""
    in_a_row: int = Field(default=1, ge=1)
    """where each task has samples of its own: the samples of one task in a row, which is the batch"""
    size: tuple[int, int] | None = None
    """height and width that images are fitted to, where all tasks learn maps; one number is a square"""
    fit: Fitting | None = None
    """how `size` is reached: longer (ratio kept, padded) or squash; by default as the backbone's preprocessing does"""
    image_changes: str = Field(default="none", alias="augment")
    """changes of training images and all their maps, joined by +: flip, turn, zoom, photometric, crop, scale_jitter"""
    singles: dict[str, float] = Field(default_factory=dict)
    """the leading metric of a model that was trained for each task alone, on the images of validation"""
    measured: dict[str, dict[str, float]] = Field(default_factory=dict)
    """such scores by the digest of the images (`ImageSet.contents_digest`) that they were measured on; `vpeft
    multitask` keeps those of validation and test"""

    @field_validator("parts", mode="before")
    @classmethod
    def _made(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = [given]
        if isinstance(given, Sequence):
            named = {}
            for one in given:
                name = one.name if isinstance(one, Task) else parse_one(str(one), "task").name
                named[name] = one
            if len(named) < len(given):
                raise ValueError("two tasks have one name; give a mapping from names of yours to the tasks")
            given = named
        return {name: _task(one) for name, one in dict(given).items()}

    @field_serializer("parts")
    def _stated(self, parts: Mapping[str, Task]) -> dict[str, Any]:
        return {
            name: {"name": one.name, **one.model_dump(mode="json", exclude_defaults=True, by_alias=True)}
            for name, one in parts.items()
        }

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, size: Any) -> Any:
        return (size, size) if isinstance(size, int) and not isinstance(size, bool) else size

    @field_validator("balance")
    @classmethod
    def _known_way(cls, balance: str) -> str:
        name = balance.replace("-", "_")
        if name not in balances():
            raise ValueError(f"it is one of {', '.join(balances())}")
        return name

    @field_validator("mixing", mode="before")
    @classmethod
    def _snake(cls, mixing: Any) -> Any:
        return mixing.replace("-", "_") if isinstance(mixing, str) else mixing

    @model_validator(mode="after")
    def _of_parts(self) -> Self:
        measured = [("measured", scores) for scores in self.measured.values()]
        for what, named in (("weights", self.weights), ("singles", self.singles), *measured):
            unknown = [name for name in named if name not in self.parts]
            if unknown and self.parts:
                raise ValueError(f"{what} names {unknown[0]}, and the tasks are {', '.join(self.parts)}")
        if any(not math.isfinite(value) or value < 0 for value in self.weights.values()):
            raise ValueError("weights are numbers from 0 on")
        for name, one in self.parts.items():  # those of a source of several kinds, `mask/floor`
            own = _labels_of(self.labels, one.target_kind, len(self.parts) == 1)
            if own and not one.labels:
                self.parts[name] = one.model_copy(update={"labels": tuple(own)})
        if any(not isinstance(one, MapTask) for one in self.parts.values()):
            if self.size or self.fit or self.image_changes != "none":
                raise ValueError("size, fit and augment are for tasks that all learn maps")
            own = [name for name, one in self.parts.items() if one.own_transforms and not isinstance(one, MapTask)]
            if own:
                raise ValueError(f"the task {own[0]} changes images in a way of its own, which others cannot follow")
        augmenting = [name for name, one in self.parts.items() if one.augments is not None]
        if augmenting:
            raise ValueError(f"the task {augmenting[0]} mixes images, whose targets for the other tasks do not mix")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks, in the order of their heads."""
        return tuple(self.parts)

    @property
    def leading(self) -> Leading:
        """delta_m where the single-task scores are known, else the mean loss; of one task its own."""
        if len(self.parts) == 1:
            name, only = next(iter(self.parts.items()))
            return Leading(f"{name}/{only.leading.name}", only.leading.higher_is_better)
        return Leading(DELTA) if set(self.singles) == set(self.parts) else Leading("loss", higher_is_better=False)

    def with_singles(
        self, scores: Mapping[str, float], measured: Mapping[str, Mapping[str, float]] | None = None
    ) -> Self:
        """The task with the measured leading metric of each task's own model, against which delta_m compares.

        Args:
            scores: of validation.
            measured: the field of that name; None leaves it.
        """
        kept = self.measured if measured is None else {digest: dict(one) for digest, one in measured.items()}
        return type(self).model_validate({**self._fields(), "singles": dict(scores), "measured": kept})

    def compared_on(self, images: Any) -> Self:
        """With the single-task scores that were measured on these images; without any, and a warning, if none were."""
        if not self.singles and not self.measured:
            return self
        digest = images.contents_digest() if isinstance(images, ImageSet) else ""
        scores = self.measured.get(digest, {})
        if set(scores) != set(self.parts):
            warnings.warn(
                f"There is no {DELTA} for these {len(images)} images: the scores of the single-task models were not"
                f" measured on them. Score the test images of the training, or its validation images, with `--split`;"
                f" `vpeft multitask` measures single-task models on both and keeps their scores in the adapter file.",
                DataWarning,
                stacklevel=2,
            )
            scores = {}
        return self.with_singles(scores)

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    # -- what is read -------------------------------------------------------------------------------------------------

    @property
    def own_transforms(self) -> bool:
        """Whether all tasks learn maps, which then go through every change with the image."""
        return bool(self.parts) and all(isinstance(one, MapTask) for one in self.parts.values())

    @property
    def shown_size(self) -> tuple[int, int] | Literal["own", "any"]:
        """That of `size` where it is stated."""
        return self.size or "own"

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """The transform of images and all their maps; the default where a task learns something else."""
        if not self.own_transforms:
            return super().transforms(preprocessing, augmentation, training)
        layers = list({one.layer.name: one.layer for one in self.parts.values() if isinstance(one, MapTask)}.values())
        changes = augmentation if self.image_changes == "none" else self.image_changes
        chosen = layers[0] if len(self.parts) == 1 else layers  # a source gives one map by itself
        return maps_transform(preprocessing, training, chosen, self.size, augment=changes, fit=self.fit)

    def sample_of(self, image: Any, transform: Callable[..., Any], id: str) -> Sample:
        """A sample of an image without targets, which holds where the image lies in what the model is given."""
        first = next(iter(self.parts.values()), None)
        return super().sample_of(image, transform, id) if first is None else first.sample_of(image, transform, id)

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """A head for each task; `NoParts` where no task is named."""
        if not self.parts:
            raise NoParts("No task is named. Give several: MultiTask(parts={'semantic': ..., 'depth': ...}).")
        heads: dict[str, nn.Module] = {}
        for name, one in self.parts.items():
            made = made_head(backbone, width, None, None, one)
            if made is None:
                raise BadOption(f"The task {name} ({one.name}) makes no head, so it cannot stand beside others.")
            heads[name] = made
        balance = make_balance(self.balance, self.task_names)
        return Heads(heads) if balance is None else BalancedHeads(heads, balance)

    def bind(self, train: Any) -> Self:
        """The task with each part bound to its own samples or targets."""
        bound = {name: one.bind(self._view(train, name)) for name, one in self.parts.items()}
        names = getattr(train, "labels", None)
        known = tuple(names) if isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names) else ()
        labels = self.labels or known
        return type(self).model_validate({**self._fields(), "parts": bound, "labels": labels})

    def check(self, train: Any) -> None:
        """Refuse targets that are no mapping from tasks to targets, or that a part refuses."""
        missing = [name for name in self.parts if isinstance(train, TaskMixture) and name not in train.parts]
        if missing:
            raise UnsuitableTargets(f"There are no samples for the task {missing[0]!r}.")
        told = told_targets(train)
        if told is not None and len(told) and not isinstance(told[0], Mapping) and len(self.parts) > 1:
            raise self._no_mapping(told[0])
        for name, one in self.parts.items():
            one.check(self._view(train, name))

    def _no_mapping(self, target: Any) -> UnsuitableTargets:
        wanted = ", ".join(f"{name!r}: ..." for name in self.parts)
        return UnsuitableTargets(
            f"The task {self.name} learns targets by task, {{{wanted}}}, and a sample has a {type(target).__name__}."
        )

    def _view(self, data: Any, task: str) -> Any:
        if isinstance(data, TaskMixture):
            return data.parts.get(task, [])
        return OfOneTask(data, task, self.parts[task].target_kind, len(self.parts) == 1)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples whose targets are mappings, as a batch.

        If all are of one task alone, the batch names it. If they are of several, each with targets of its own, the
        batch says which samples have which.
        """
        whole = [as_sample(sample) for sample in samples]
        if all(one.target is None or _is_window(one.target) for one in whole):  # for prediction
            return next(iter(self.parts.values())).collate(whole)
        found = [self._by_name(sample.target) for sample in whole]
        there = [name for name in self.parts if any(name in one for one in found)]
        if not there:
            raise UnsuitableTargets(
                f"A sample has targets for {', '.join(map(str, found[0])) or 'nothing'}, and the tasks are"
                f" {', '.join(self.parts)}."
            )
        rows = {name: [place for place, one in enumerate(found) if name in one] for name in there}
        parts = {
            name: self.parts[name].collate(
                [Sample(whole[place].input, found[place][name], whole[place].id) for place in rows[name]]
            )
            for name in there
        }
        full = [name for name in there if len(rows[name]) == len(whole)]
        if not full:
            inputs = self.parts[there[0]].collate([Sample(one.input, None, one.id) for one in whole]).inputs
            targets = {name: one.targets for name, one in parts.items()}
            ids = tuple(one.id for one in whole)
            return Batch(
                inputs,
                {**targets, _ROWS: {name: torch.tensor(places) for name, places in rows.items()}},
                ids if any(ids) else (),
                size=len(whole),
            )
        first = parts[full[0]]
        if len(there) == 1:
            return first.with_(task=there[0])
        if len(full) < len(there):
            some = next(name for name in there if name not in full)
            raise UnsuitableTargets(f"Some samples of a batch have targets for {some}, and some have none.")
        return first.with_(targets={name: one.targets for name, one in parts.items()}, size=len(whole))

    def _by_name(self, target: Any) -> dict[str, Any]:
        """The targets of a sample by task; a data source names them by their kind."""
        if len(self.parts) == 1:
            name, only = next(iter(self.parts.items()))
            inside = isinstance(target, Mapping) and (name in target or only.target_kind in target)
            return {name: _one_of(target, name, only.target_kind) if inside else target}
        if not isinstance(target, Mapping):
            raise self._no_mapping(target)
        return {
            name: target[key]
            for name, one in self.parts.items()
            if (key := name if name in target else one.target_kind) in target
        }

    def order(self, train: Any, shuffled: list[int], epoch_seed: int) -> list[int]:
        """Samples of one task in a row where each has its own; else each sample once."""
        if not isinstance(train, TaskMixture):
            return shuffled
        return mixed_order(train, shuffled, self.in_a_row, self.mixing, self.temperature, epoch_seed)

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def _of_tasks(self, outputs: Any, batch: Batch) -> dict[str, tuple[Any, Batch]]:
        """For each task that the batch has targets for: its outputs and the batch as it sees it."""
        if batch.task:
            own = outputs.get(batch.task) if balance_of(outputs)[0] is not None else outputs
            return {batch.task: (own, batch)}
        targets = batch.targets if isinstance(batch.targets, Mapping) else {}
        rows = targets.get(_ROWS, {})
        found = {}
        for name in self.parts:
            if name not in targets:
                continue
            part = batch.of_task(name)
            if name in rows:
                chosen = rows[name]
                ids = tuple(batch.ids[place] for place in chosen.tolist()) if batch.ids else ()
                part = Batch(_rows_of(batch.inputs, chosen, len(batch)), targets[name], ids, name)
                found[name] = (_rows_of(outputs[name], chosen, len(batch)), part)
            else:
                found[name] = (outputs[name], part)
        return found

    def _losses(self, outputs: Any, batch: Batch) -> dict[str, dict[str, Tensor]]:
        return {name: self.parts[name].loss(*own) for name, own in self._of_tasks(outputs, batch).items()}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The parts of each task's loss, `task/part`, times the task's weight; or as `balance` weighs the tasks."""
        losses = self._losses(outputs, batch)
        weighted = {
            name: {part: self.weights.get(name, 1.0) * value for part, value in own.items()}
            for name, own in losses.items()
        }
        balance, features = balance_of(outputs)
        if balance is None:
            if self.balance != "fixed":
                raise BadOption(
                    f"The heads do not weigh losses by {self.balance}. Attach the method with this task,"
                    " tune(model, method, task=task), which makes the heads."
                )
            return {f"{name}/{part}": value for name, own in weighted.items() for part, value in own.items()}
        sums = {name: torch.stack([*own.values()]).sum() for name, own in weighted.items()}
        return balance.combined(sums, features)

    @torch.no_grad()
    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The loss of each task before it is weighed, `task/loss`, and what each task shows."""
        found: dict[str, Tensor] = {}
        for name, (own, part) in self._of_tasks(outputs, batch).items():
            losses = [value.detach().float() for value in self.parts[name].loss(own, part).values()]
            found[f"{name}/loss"] = torch.stack(losses).sum() * len(part)
            found |= {f"{name}/{key}": value for key, value in self.parts[name].monitor(own, part).items()}
        return found

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Let each task look at its outputs and targets."""
        for name, (own, part) in self._of_tasks(outputs, batch).items():
            self.parts[name].check_batch(own, part)

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `MultiTaskScores`."""
        return MultiTaskScores(self)

    def delta(self, values: Mapping[str, float]) -> float:
        """delta_m in per cent: the mean over the tasks of (M - S) / S with the single-task value S.

        It is negated where less is better.

        Args:
            values: the leading metric M of each task.
        """
        gains = []
        for name, single in self.singles.items():
            sign = 1.0 if self.parts[name].leading.higher_is_better else -1.0
            gains.append(sign * (values[name] - single) / single if single else math.nan)
        return 100.0 * sum(gains) / len(gains) if gains else math.nan

    def calibrated(self, outputs: Callable[[], Iterable[tuple[Any, Batch]]]) -> Self:
        """With what each task chooses on validation samples."""

        def of(name: str) -> Callable[[], Iterable[tuple[Any, Batch]]]:
            return lambda: (
                own for out, batch in outputs() if (own := self._of_tasks(out, batch).get(name)) is not None
            )

        asking = {name: one for name, one in self.parts.items() if type(one).calibrated is not Task.calibrated}
        if not asking:
            return self
        chosen = {name: one.calibrated(of(name)) for name, one in asking.items()}
        return type(self).model_validate({**self._fields(), "parts": {**self.parts, **chosen}})

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """The leading metric of each task beside that of its own model, then each task's tables."""
        columns = ("task", "metric", "value", "alone", "gain")
        rows = [[row[name] for name in columns] for row in details.get("by_task", ())]
        found: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = [("Tasks", columns, rows)] if rows else []
        for name, own in details.get("tasks", {}).items():
            if name in self.parts:
                found += [(f"{name}: {title}", *rest) for title, *rest in self.parts[name].report(own)]  # type: ignore[misc]
        return found

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """What each task says: rows with its name, values by task, and the map of the first that has one."""
        said: dict[str, list[Prediction]] = {}
        for name, one in self.parts.items():
            if batch.task and name != batch.task:
                continue
            own = outputs if batch.task else outputs[name]
            said[name] = one.predictions(own, batch.of_task(name))
        made = []
        for each in zip(*said.values(), strict=True):
            named = dict(zip(said, each, strict=True))
            rows = tuple({"task": name, **row} for name, one in named.items() for row in one.rows[:1])
            drawn = next((one for one in each if one.map is not None or one.objects is not None), each[0])
            values = {name: dict(one.values) for name, one in named.items()}
            made.append(Prediction(each[0].id, rows, values, drawn.map, drawn.objects))
        return made


def _is_window(target: Any) -> bool:
    return isinstance(target, Mapping) and set(target) == {"shown", "covers", "original"}


class OfOneTask:
    """A data set whose targets are mappings, as one of its tasks sees it: labels, and targets one by one."""

    def __init__(self, data: Any, task: str, kind: str, alone: bool = False) -> None:
        self.data, self.task, self.kind = data, task, kind
        names = getattr(data, "labels", None)
        of_task = names.get(task, names.get(kind)) if isinstance(names, Mapping) else None
        if isinstance(names, (list, tuple)):  # as a source of several kinds names them, or of one
            of_task = _labels_of(names, kind, alone) or None
        if of_task is not None:
            self.labels = list(of_task)
        told = told_targets(data)
        if told is not None and len(told):
            self.targets = [_one_of(target, task, kind) for target in told]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = as_sample(self.data[index])
        return Sample(sample.input, _one_of(sample.target, self.task, self.kind), sample.id)


def _labels_of(names: Sequence[str], kind: str, alone: bool) -> list[str]:
    """The labels of one kind among `kind/label` of several; all of them where there is one task."""
    own = [str(name).removeprefix(f"{kind}/") for name in names if str(name).startswith(f"{kind}/")]
    return own or (list(names) if alone else [])


def _one_of(target: Any, task: str, kind: str) -> Any:
    if not isinstance(target, Mapping):
        return target
    if task in target or kind in target:
        return target[task] if task in target else target[kind]
    raise UnsuitableTargets(f"A sample has no target for the task {task!r}; it has {', '.join(map(str, target))}.")


def _task(given: Any) -> Task:
    """A task, its text, or a mapping with its name and options, as a task."""
    if isinstance(given, Task):
        return given
    if isinstance(given, Mapping):
        fields = dict(given)
        return get_task(str(fields.pop("name", "")))(**fields)
    spec = parse_one(str(given), "task")
    return get_task(spec.name)(**spec.fields)


def _rows_of(part: Any, rows: Tensor, count: int) -> Any:
    """The chosen rows of every tensor that has one for each sample."""
    if isinstance(part, Tensor):
        return part[rows.to(part.device)] if part.dim() and len(part) == count else part
    if isinstance(part, Mapping):
        return {name: _rows_of(value, rows, count) for name, value in part.items()}
    if isinstance(part, list) and len(part) == count:
        return [part[place] for place in rows.tolist()]
    if isinstance(part, (list, tuple)):
        return type(part)(_rows_of(value, rows, count) for value in part)
    return part


class MultiTaskScores(Metric):
    """The scores of each task, `task/metric`, their mean loss, and delta_m where the single-task scores are known.

    `loss` is the sum over the tasks of weight times mean loss of a sample. Details: `by_task`, the leading metric of
    each task beside its single-task value, and `tasks`, each task's own details.
    """

    is_differentiable = False
    full_state_update = False

    losses: Tensor
    counts: Tensor

    def __init__(self, task: MultiTask) -> None:
        super().__init__()
        self.task = task
        self.metrics = nn.ModuleDict({name: one.metric() for name, one in task.parts.items()})
        zeros = torch.zeros(len(task.parts), dtype=torch.float64)
        self.add_state("losses", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", zeros.clone(), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch."""
        names = list(self.task.parts)
        for name, (own, part) in self.task._of_tasks(outputs, batch).items():
            metric: Any = self.metrics[name]
            metric.update(own, part)
            losses = self.task.parts[name].loss(own, part).values()
            self.losses[names.index(name)] += sum(float(value) for value in losses) * len(part)
            self.counts[names.index(name)] += len(part)

    def compute(self) -> dict[str, Any]:
        """Values by name, and the details."""
        values: dict[str, Any] = {}
        details: dict[str, Any] = {}
        leading: dict[str, float] = {}
        for name, one in self.task.parts.items():
            metric = self.metrics[name]
            assert isinstance(metric, Metric)
            own = metric.compute()
            for key, value in own.items():
                value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    values[f"{name}/{key}"] = float(value)
                else:
                    details.setdefault(name, {})[key] = value
            leading[name] = values.get(f"{name}/{one.leading.name}", math.nan)
        counted = self.counts > 0
        weights = torch.tensor([self.task.weights.get(name, 1.0) for name in self.task.parts], dtype=torch.float64)
        means = self.losses / self.counts.clamp(min=1)
        values["loss"] = float((weights * means)[counted].sum()) if bool(counted.any()) else math.nan
        if set(self.task.singles) == set(self.task.parts):
            values[DELTA] = self.task.delta(leading)
        rows = []
        for name, one in self.task.parts.items():
            single = self.task.singles.get(name)
            sign = 1.0 if one.leading.higher_is_better else -1.0
            gain = None if not single else 100.0 * sign * (leading[name] - single) / single
            rows.append(
                {"task": name, "metric": one.leading.name, "value": leading[name], "alone": single, "gain": gain}
            )
        return {**values, "by_task": rows, "tasks": details}

    def reset(self) -> None:
        """Count from the beginning."""
        super().reset()
        for metric in self.metrics.values():
            assert isinstance(metric, Metric)
            metric.reset()
