"""The engine that the benchmark uses unless it is given another: vpeft's own backbones, methods and training."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpeft.backbones.create import create_backbone
from vpeft.backbones.describe import describe
from vpeft.backbones.digest import weights_digest
from vpeft.backbones.positions import ResizedPositions
from vpeft.bench.engine import Assignment
from vpeft.bench.key import Numerics
from vpeft.bench.record import Costs, RecordedScores
from vpeft.bench.sealed import Trained
from vpeft.bench.shared_cache import KeptTensors, SharedCache
from vpeft.bench.splits import Split
from vpeft.bench.suite import BenchTask
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.errors import VpeftError
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import get_method
from vpeft.method_spec import MethodSpec
from vpeft.task import Task
from vpeft.training.evaluate import evaluate
from vpeft.training.fit import fit
from vpeft.training.machine import accelerator
from vpeft.training.memory import saved_bytes
from vpeft.training.optimisation import Optimisation, Precision
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness
from vpeft.training.result import EpochRecord, Result
from vpeft.training.validation_panel import validation_pictures

# Images at a time when testing; no influence on the scores but for rounding.
TEST_BATCH = 250
# Samples of a run's picture: a page shows those of many runs.
SHOWN = 3
# A run's key does not tell how it was computed, so of what saves work the benchmark takes only what repeats the very
# computation: elsewhere sums are taken in another order.
ACCELERATION = "frozen_prefix"
# Before a backbone's name: the same architecture with random weights, the floor below every pre-trained one.
RANDOM = "random:"


class NotMeasured(VpeftError):
    """The metric by which runs are compared has no finite value."""


@dataclass(frozen=True)
class CarriedBackbone:
    """A backbone on its way to another machine. `digest` is that of its weights at its own image size."""

    name: str
    image_size: tuple[int, int] | None
    frames: int | None
    module: nn.Module
    digest: str

    @property
    def asked(self) -> tuple[str, tuple[int, int] | None, int | None]:
        """What `_backbone` would be asked for."""
        return self.name, self.image_size, self.frames


@dataclass(frozen=True)
class VpeftEngine:
    """Trains with `vpeft.tune` and `vpeft.fit`. `accelerated` False stays on the processor.

    Runs of one engine share the images as tensors and the outputs of what is frozen, in `cache`: the points of a grid
    and the seeds of a method pass the images through the trunk once.
    """

    accelerated: bool = True
    precision: Precision = "fp32"
    cache: SharedCache = field(default_factory=SharedCache, compare=False, repr=False, kw_only=True)
    # A backbone that came with the engine from another machine.
    carried: CarriedBackbone | None = field(default=None, compare=False, repr=False, kw_only=True)

    def carrying(self, backbone: str, task: BenchTask) -> VpeftEngine:
        """The engine with a backbone as the runs of a task use it, for a machine that need not have its weights."""
        frames = None if task.clip is None else task.clip.frames
        module = _backbone(backbone, task.image_size, frames)
        carried = CarriedBackbone(backbone, task.image_size, frames, module, _digest(backbone))
        return replace(self, cache=SharedCache(), carried=carried)

    @property
    def numerics(self) -> Numerics:
        return Numerics(device=self._device().type, precision=self.precision)

    def _device(self) -> torch.device:
        return torch.device(accelerator(self.precision, "auto" if self.accelerated else "cpu").device)

    def device(self) -> str:
        device = self._device()
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        return "" if device.type == "cpu" else device.type

    def weights(self, backbone: str) -> str:
        carried = self.carried
        return carried.digest if carried is not None and carried.name == backbone else _digest(backbone)

    def resolve(self, method: MethodSpec, backbone: str) -> MethodSpec:
        made = get_method(method.name)(**method.fields).resolved(describe(_backbone(backbone)))
        return MethodSpec(name=made.name, fields=made.model_dump(mode="json"))

    def train(
        self,
        assignment: Assignment,
        train: Split,
        val: Split | None,
        after_epoch: Callable[[Trained], None] | None,
    ) -> TrainedModel:
        identity = assignment.identity
        clip = assignment.clip
        frames = None if clip is None else clip.frames
        asked, carried = (identity.backbone, assignment.image_size, frames), self.carried
        model = copy.deepcopy(carried.module if carried is not None and carried.asked == asked else _backbone(*asked))
        settings, augmentation, unbound = self._settings(assignment)
        prepared = Preprocessing.from_model(model)
        # Of a protocol that shows images in one way, whatever the backbone says.
        shown = identity.optimisation.get("preprocessing")
        if shown is not None:
            prepared = Preprocessing.model_validate({**prepared.model_dump(), **shown})
        if assignment.image_size is not None:
            prepared = prepared.resized(assignment.image_size)
        if clip is not None:
            prepared = prepared.with_clip(clip)
        methods = [get_method(method.name)(**method.fields) for method in identity.methods]
        with untouched_randomness():
            # The same start for all methods as far as they share it, and whatever ran before in this process.
            seed_everything(derived_seed(identity.seed, "start"))
            images = self.cache.images(train, unbound, prepared, augmentation, identity.seed)
            task = unbound.bind(images)
            tuned = tune(model, *methods, task=task, show=False)

        def scored(now: TunedModel, record: EpochRecord) -> None:
            if after_epoch is not None:
                after_epoch(TrainedModel(now, task, prepared, self.precision))

        _forget_peak()
        result = fit(
            tuned,
            images,
            # The last epoch counts, so validation would decide nothing.
            None,
            optimisation=settings,
            out=assignment.folder,
            progress=False,
            after_epoch=scored if after_epoch is not None else None,
            identity={"run": identity.key()},
            task=task,
            shared=self.cache.training,
        )
        if result.state == "stopped":
            # `fit` has turned the signal into a checkpoint and an ordinary return. The benchmark is to stop, too; the
            # run stays planned and goes on from the checkpoint next time.
            raise KeyboardInterrupt(result.reason or "stopped")
        trained = TrainedModel(tuned, task, prepared, self.precision, cache=self.cache)
        return replace(
            trained, costs=_costs(tuned, task, images, settings, result), history=tuple(map(_plain, result.history))
        )

    def _settings(self, assignment: Assignment) -> tuple[Optimisation, str, Task]:
        """How to train; the augmentation policy, which is a setting of the data; and the task with its options."""
        stated = dict(assignment.identity.optimisation)
        # Of a searched final run: what was searched. The point is what was found.
        stated.pop("grid", None)
        stated.pop("search_seed", None)
        stated.pop("preprocessing", None)
        augmentation = str(stated.pop("augmentation", "none"))
        # What a protocol states beyond the optimiser's settings is the task's: smoothing, mixup.
        options = {name: stated.pop(name) for name in list(stated) if name not in Optimisation.model_fields}
        stated_task = assignment.learns.model_dump(exclude_unset=True)
        task = type(assignment.learns)(**{**stated_task, "labels": assignment.labels, **options})
        settings = {
            **stated,
            **assignment.point.model_dump(),
            "seed": assignment.identity.seed,
            "precision": self.precision,
            "device": "auto" if self.accelerated else "cpu",
            "acceleration": ACCELERATION,
        }
        return Optimisation(**settings), augmentation, task


@dataclass(frozen=True)
class TrainedModel:
    """A model that `VpeftEngine` trained."""

    tuned: TunedModel
    task: Task
    preprocessing: Preprocessing
    precision: Precision
    costs: Costs = Costs()  # noqa: RUF009 - frozen, so one for all is safe
    history: tuple[dict[str, float], ...] = ()
    # Of the scores on each split that was evaluated.
    details: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    # Where records are found; none while it is still in training, when records of its own may be in the way.
    cache: SharedCache | None = None

    def evaluate(self, images: Split, split: str) -> RecordedScores:
        dataset = (self.cache or SharedCache()).images(images, self.task, self.preprocessing, None, 0)
        if self.cache is not None:
            scores = self.cache.scores(self.tuned, dataset, self.task, TEST_BATCH, self.precision)
        else:
            scores = evaluate(self.tuned, dataset, task=self.task, batch=TEST_BATCH, precision=self.precision)
        require_measured(scores.leading, scores.values[scores.leading], split)
        self.details[split] = scores.details
        return RecordedScores(
            split=split,
            values=scores.values,
            leading=scores.leading,
            higher_is_better=scores.higher_is_better,
            count=scores.count,
        )

    def pictures(self, images: Split, split: str) -> Mapping[str, bytes]:
        if type(self.task).truth is Task.truth:
            return {}
        dataset = (self.cache or SharedCache()).images(images, self.task, self.preprocessing, None, 0)
        details = self.details.get(split, {})
        return validation_pictures(self.tuned, dataset, self.task, self.preprocessing, details, SHOWN)


def require_measured(name: str, value: float, split: str) -> None:
    """Raise `NotMeasured` for a leading value that is NaN or infinite: such a run has failed and is not compared."""
    if not math.isfinite(value):
        raise NotMeasured(
            f"{name} on the {split} split is {value}, so this run cannot be compared. Its training may have diverged:"
            " lower the learning rate, or look at the losses in its history."
        )


@lru_cache(maxsize=2)
def _backbone(name: str, image_size: tuple[int, int] | None = None, frames: int | None = None) -> nn.Module:
    """The backbone for images of a size, or clips; its own where none is stated. Made once, every run gets a copy."""
    plain = name.removeprefix(RANDOM)
    with untouched_randomness(), warnings.catch_warnings():
        # The suite states the size, so there is nothing to say about positions that are resized to it.
        warnings.simplefilter("ignore", ResizedPositions)
        seed_everything(0)
        return create_backbone(plain, pretrained=plain == name, image_size=image_size, frames=frames).eval()


@lru_cache(maxsize=4)
def _digest(backbone: str) -> str:
    return weights_digest(describe(_backbone(backbone)))


def _costs(
    tuned: TunedModel, task: Task, images: ImageSet | KeptTensors, settings: Optimisation, result: Result
) -> Costs:
    plan = tuned.plan()
    batch = task.collate([images[index] for index in range(min(settings.batch, len(images)))])
    device = next(tuned.parameters()).device
    with untouched_randomness():
        tuned.train()
        try:
            kept = saved_bytes(tuned, batch.to(device), task.run)
        finally:
            tuned.eval()
    # The median over epochs: the first one also warms caches and allocators.
    speed = statistics.median(record.images_per_second for record in result.history)
    memory = result.peak_memory
    return Costs(
        trainable=plan.trainable,
        trainable_with_head=plan.trainable_with_head,
        backbone_parameters=plan.backbone_parameters,
        reach=plan.reach,
        stored_bytes=plan.bytes_on_disk,
        saved_bytes=kept,
        step_seconds=settings.batch / speed,
        steps=result.steps,
        peak_memory_bytes=memory.accelerator if memory.accelerator is not None else memory.process,
    )


def _plain(record: EpochRecord) -> dict[str, float]:
    """An epoch's numbers by name; those of a part as `part_name`."""
    found: dict[str, float] = {}
    for name, value in record.model_dump().items():
        parts = (
            {f"{name}_{part}": number for part, number in value.items()} if isinstance(value, dict) else {name: value}
        )
        found |= {part: float(number) for part, number in parts.items() if isinstance(number, (int, float))}
    return found


def _forget_peak() -> None:
    """Start the process's peak of resident memory anew, where Linux allows it; else it counts from its start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
