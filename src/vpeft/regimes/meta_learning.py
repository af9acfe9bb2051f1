"""Retrain a backbone on several tasks so that a low-rank step of each fits it; it is then used like any other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpeft.atomic import replace_file
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.describe import describe
from vpeft.batch import Batch
from vpeft.errors import VpeftError
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.learner import MethodText, methods_of
from vpeft.regimes.meta_gradients import MetaGradients, Order, Tensors, meta_gradients
from vpeft.task import Task
from vpeft.training.batches import Batches, Samples
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness


class CannotMetaLearn(VpeftError):
    """The tasks, the method or the backbone do not suit meta-learning."""


class MetaSettings(BaseModel):
    """How a base is retrained: what each task adapts, how far, and at which rates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodText = Field(
        default="lora(rank=4, targets=[q, k, v, proj, fc1, fc2])",
        description="What each source task adapts by itself; it is thrown away.",
    )
    order: Order = Field(
        default="joint",
        description="joint: one optimiser moves the base and all adapters; first, second: each task makes inner steps"
        " from a fresh adapter, and the base follows to first or second order.",
    )
    steps: int = Field(default=1000, ge=1, description="Optimiser steps, each on one batch of every task.")
    batch: int = Field(default=32, ge=1, description="Images of each task in a step.")
    lr: float = Field(default=1e-5, gt=0, description="Rate of the base.")
    adapter_lr: float = Field(default=1e-3, gt=0, description="Rate of the heads, and of the adapters if joint.")
    inner_steps: int = Field(default=5, ge=1, description="Inner steps of each task, if first or second.")
    inner_lr: float = Field(default=1e-2, gt=0, description="Rate of the inner steps (plain descent).")
    keep_adapters: bool = Field(
        default=False, description="Let inner steps go on from the adapters of the step before, not from fresh ones."
    )
    weight_decay: float = Field(default=1e-5, ge=0, description="Of AdamW, on everything.")
    seed: int = Field(default=0, description="Of the adapters, the heads and the order of the images.")


def meta_learn(
    model: nn.Module | Backbone,
    tasks: Mapping[str, tuple[Task, Samples]],
    settings: MetaSettings | None = None,
    *,
    adapt: bool = True,
    workers: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[float]:
    """Retrain the weights of a backbone in place: min over W of the mean over tasks of min over A_t of loss_t(W + A_t).

    A_t is the adapter of task t, and each task has a head of its own; both are thrown away. Afterwards the model is a
    plain backbone with new weights, frozen or not as before.

    Args:
        model: the backbone; its weights change.
        tasks: for each name a task and prepared samples.
        settings: see `MetaSettings`.
        adapt: False leaves the adapters out: plain retraining on all tasks together, the usual rival.
        workers: loading processes.
        say: is told how far it has got.

    Returns:
        The mean loss of each step.

    Raises:
        CannotMetaLearn: no task, a task without samples, or a method that trains the backbone itself.
    """
    settings = settings or MetaSettings()
    lacking = [name for name, (_, samples) in tasks.items() if not len(samples)]
    if not tasks or lacking:
        raise CannotMetaLearn(
            f"There are no images of {lacking[0]!r}." if lacking else "No source task was named; give one or more."
        )
    tuned = TunedModel(model if isinstance(model, Backbone) else describe(model))
    with untouched_randomness():
        seed_everything(derived_seed(settings.seed, "meta"))
        chosen = methods_of(settings.method if adapt else "linear_probe")
        for name, (task, _) in tasks.items():
            tuned.attach(*chosen, name=name, task=task)
        try:
            return _Retraining(tuned, tasks, settings, adapt, workers).run(say)
        finally:
            for name in list(tuned.adapters):
                tuned.detach(name)


class _Retraining:
    """The shared tensors are the backbone's parameters; a task's own are those of its adapter without the head."""

    def __init__(
        self,
        tuned: TunedModel,
        tasks: Mapping[str, tuple[Task, Samples]],
        settings: MetaSettings,
        adapt: bool,
        workers: int,
    ) -> None:
        self.tuned, self.tasks, self.settings = tuned, tasks, settings
        self.order: Order = settings.order if adapt else "joint"
        if any(edit.verb == "unfreeze" for name in tasks for edit in tuned.adapter(name).edits):
            raise CannotMetaLearn(
                f"{settings.method} trains tensors of the backbone, which are what is retrained here. Choose a method"
                " with layers of its own, such as lora."
            )
        self.shared = dict(tuned.backbone.named_parameters())
        self.own: dict[str, Tensors] = {}
        self.heads: dict[str, Tensors] = {}
        for name in tasks:
            trained = dict(tuned.trainable(name))
            self.own[name] = {key: value for key, value in trained.items() if not key.startswith("head.")}
            self.heads[name] = {key: value for key, value in trained.items() if key.startswith("head.")}
        seeds = {name: derived_seed(settings.seed, "meta", name) for name in tasks}
        self.loaders = {
            name: Batches(samples, settings.batch, seed=seeds[name], drop_last=True, workers=workers, reading=task)
            for name, (task, samples) in tasks.items()
        }
        self.batches: dict[str, Batch] = {}

    def run(self, say: Callable[[str], None]) -> list[float]:
        """All steps; the mean loss of each."""
        settings, losses = self.settings, list[float]()
        adapters = [value for one in self.own.values() for value in one.values()] if self.order == "joint" else []
        heads = [value for one in self.heads.values() for value in one.values()]
        groups: list[dict[str, Any]] = [
            {"params": [*self.shared.values()], "lr": settings.lr},
            {"params": [*adapters, *heads]},
        ]
        optimiser = torch.optim.AdamW(
            groups,
            lr=settings.adapter_lr,
            weight_decay=settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
        self.tuned.train()
        given = {name: self._endless(name) for name in self.tasks}
        began = time.perf_counter()
        for number in range(1, settings.steps + 1):
            self.batches = {name: next(one) for name, one in given.items()}
            # fused attention has no second derivative
            with sdpa_kernel(SDPBackend.MATH) if self.order == "second" else nullcontext():
                found = self._gradients()
            losses.append(found.loss)
            if not math.isfinite(found.loss):
                raise CannotMetaLearn(f"The loss of step {number} is not finite. Take smaller rates (lr, inner_lr).")
            for name, value in self.shared.items():
                value.grad = found.shared[name]
            for task, gradients in found.own.items():
                for name, gradient in gradients.items():
                    (self.heads if name.startswith("head.") else self.own)[task][name].grad = gradient
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if number % max(1, settings.steps // 10) == 0:
                say(
                    f"{number} of {settings.steps} steps: loss {losses[-1]:.3f},"
                    f" {(time.perf_counter() - began) / number:.2f} s each"
                )
        self.tuned.eval()
        return losses

    def _gradients(self) -> MetaGradients:
        settings = self.settings
        if self.order == "joint":
            own = {name: {**self.own[name], **self.heads[name]} for name in self.tasks}
            return meta_gradients(self._loss, self.shared, own)
        # the heads are kept from step to step, so they answer for the loss behind the inner steps as the base does
        heads = {f"{task}/{key}": value for task, one in self.heads.items() for key, value in one.items()}
        found = meta_gradients(
            self._loss,
            {**self.shared, **heads},
            self.own,
            order=self.order,
            inner_steps=settings.inner_steps,
            inner_lr=settings.inner_lr,
        )
        if settings.keep_adapters:
            for task, tensors in found.reached.items():
                self.own[task] |= tensors
        shared = {name: found.shared[name] for name in self.shared}
        own = {task: {key: found.shared[f"{task}/{key}"] for key in one} for task, one in self.heads.items()}
        return MetaGradients(found.loss, shared, own)

    def _loss(self, task: str, shared: Tensors, own: Tensors) -> Tensor:
        """The loss of a task's batch, with other tensors in the place of the backbone's and the adapter's."""
        kept = {key.partition("/")[2]: value for key, value in shared.items() if key.startswith(f"{task}/")}
        named = {f"backbone.{key}": value for key, value in shared.items() if key in self.shared}
        named |= {f"adapters.{task}.{key}": value for key, value in {**own, **kept}.items()}
        batch, learnt = self.batches[task], self.tasks[task][0]
        with self.tuned.enable(task):
            outputs = learnt.run(_Functional(self.tuned, named), batch)
        return torch.stack([*learnt.loss(outputs, batch).values()]).sum()

    def _endless(self, task: str) -> Iterator[Batch]:
        device, epoch = next(iter(self.shared.values())).device, 0
        while True:
            for batch in self.loaders[task].epoch(epoch):
                yield batch.to(device)
            epoch += 1


class _Functional:
    """A model with other tensors in the place of some of its own."""

    takes_batch = True

    def __init__(self, tuned: TunedModel, named: Tensors) -> None:
        self.tuned, self.named = tuned, named

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        return functional_call(self.tuned, self.named, inputs, more)


def save_base(model: nn.Module, path: Path) -> Path:
    """Write the weights of a model, so that `--weights FILE` and `create_backbone(name, weights=FILE)` read them."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    data = to_bytes(tensors)
    replace_file(path, lambda fresh: _write(fresh, data))
    return path


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
