"""SEMA: blocks gain an adapter where the images of a task are strange to all that they have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vpeft.batch import Batch
from vpeft.methods.sema import SEMA, Mixture, mean_token
from vpeft.regimes.learner import Features, Learner, Learning, Setting, outputs_for, register_learner
from vpeft.regimes.one_adapter import OneAdapter, SomeClasses
from vpeft.regimes.stream import StreamTask
from vpeft.training.randomness import seed_everything, untouched_randomness


@register_learner("sema", paper="2403.18886")
class SEMALearner(Learner):
    """Before a task, each block that can have several adapters is looked at in order, first blocks first.

    z = |e - mean| / std is how far an image's reconstruction error e is from those of an adapter's own task. Where in
    some batch of the task the smallest mean z of the block's adapters is above `threshold`, the block gains an adapter
    with its row of the router and its descriptor, at most one for each task. Then these and the head are trained, then
    the descriptor, and all of it is frozen. Where no block gains one, the new rows of the head train alone.

    Departures: the batches are of the images without augmentation in their order, and mean and std are of all images of
    the task; the code takes shuffled batches and the last 500 errors of the training.
    """

    bottleneck: int = Field(default=16, gt=0)
    """width of an adapter"""
    descriptor: int = Field(default=128, gt=0)
    """inner width of a descriptor"""
    expandable: int = Field(default=3, ge=0)
    """how many of the last blocks can have several adapters"""
    threshold: float = Field(default=2.0, ge=0)
    """of z; 1 for VTAB and ImageNet-A"""
    batch: int = Field(default=128, gt=0)
    """images that are asked together whether they are strange"""
    descriptor_lr: float = Field(default=0.01, gt=0)
    """rate of the descriptors"""
    descriptor_epochs: int = Field(default=20, gt=0)
    """passes that train a descriptor"""

    def start(self, setting: Setting) -> Learning:
        return SEMALearning(self, setting)


class OnlyPenalty(SomeClasses):
    """Nothing is asked of the outputs: what trains is what the method's penalty says."""

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Zero."""
        return {"cross_entropy": 0.0 * outputs.float().sum()}


class SEMALearning(OneAdapter):
    """See `SEMALearner`."""

    def __init__(self, options: SEMALearner, setting: Setting) -> None:
        self.options = options
        super().__init__(setting, (self._method(()),), "linear")

    def _method(self, counts: tuple[int, ...]) -> SEMA:
        options = self.options
        return SEMA(
            bottleneck=options.bottleneck,
            descriptor=options.descriptor,
            expandable=options.expandable,
            adapters=counts,
        )

    @property
    def mixtures(self) -> list[Mixture]:
        """Of all blocks, in order."""
        return [edit.layer for edit in self.tuned.adapter().edits if isinstance(edit.layer, Mixture)]

    @property
    def described(self) -> list[int]:
        """The numbers of the blocks that can have several adapters."""
        return [number for number, one in enumerate(self.mixtures) if len(one.descriptors)]

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        self.begin(task, labels)
        if not task.number:
            self._train_newest(task, labels, range(len(self.mixtures)), "first")
            return
        gained = False
        for number in self.described:
            if self.strange(task, number) > self.options.threshold:
                self.expand(number, task)
                self._train_newest(task, labels, [number], f"block {number}")
                gained = True
        if not gained:
            self._train_newest(task, labels, [], "head")

    @torch.no_grad()
    def strange(self, task: StreamTask, number: int) -> float:
        """The largest, over batches of the task, of the smallest mean z among the adapters of block `number`."""
        found = []
        mixture = self.mixtures[number]
        for means in self._means(task, number):
            each = torch.stack([one.strangeness(means).mean() for one in mixture.descriptors])  # type: ignore[operator]
            found.append(float(each.min()))
        return max(found)

    def _means(self, task: StreamTask, number: int) -> Iterator[Tensor]:
        """The mean tokens that enter one block's mixture, in batches of the images without augmentation."""
        seen: list[Tensor] = []

        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.append(mean_token(given[0].detach()))

        handle = self.mixtures[number].register_forward_pre_hook(note)
        try:
            for _ in outputs_for(Features(self.tuned, self.tuned.adapter().name), task.plain, self.setting):
                pass
        finally:
            handle.remove()
        yield from torch.split(torch.cat(seen), self.options.batch)

    @torch.no_grad()
    def expand(self, number: int, task: StreamTask) -> None:
        """Give one block one more adapter; every tensor that was there stays as it is."""
        counts = tuple(len(self.mixtures[one].experts) + (one == number) for one in self.described)
        tuned, name, head = self.tuned, self.tuned.adapter().name, self.head
        kept = {key: value.clone() for key, value in tuned.adapter_state().items()}
        self.methods = (self._method(counts),)
        said = tuned.task
        tuned.detach(name)
        with untouched_randomness():
            seed_everything(self.setting.seed_of(task.number, "expand", number))
            tuned.attach(*self.methods, name=name, head=head)
        tuned.load_adapter_state({**tuned.adapter_state(), **kept})
        tuned.task = said

    def _train_newest(self, task: StreamTask, labels: tuple[str, ...], numbers: Sequence[int], part: str) -> None:
        """Train the newest adapter of these blocks with the head, then its descriptor; then freeze them."""
        mixtures = self.mixtures
        for _, parameter in self.tuned.adapter().owned():
            parameter.requires_grad_(False)
        self.head.requires_grad_(True)
        for number in numbers:
            mixtures[number].experts[-1].requires_grad_(True)
            if len(mixtures[number].routers) > 1:
                mixtures[number].routers[-1].requires_grad_(True)
        self.train(task, what=SomeClasses(labels=labels, first=task.first), part=part)
        described = [mixtures[number] for number in numbers if len(mixtures[number].descriptors)]
        for _, parameter in self.tuned.adapter().owned():
            parameter.requires_grad_(False)
        if not described:
            return
        for mixture in described:
            mixture.describing = True
            mixture.descriptors[-1].requires_grad_(True)
        settings = self.setting.optimisation
        rated = settings.model_copy(update={"lr": self.options.descriptor_lr})
        self.train(
            task,
            what=OnlyPenalty(labels=labels, first=task.first),
            epochs=self.options.descriptor_epochs,
            part=f"{part} descriptor",
            optimisation=rated,
        )
        for number in numbers:
            mixture = mixtures[number]
            mixture.describing = False
            mixture.descriptors.requires_grad_(False)
            if len(mixture.descriptors):
                self._note_errors(task, number)

    @torch.no_grad()
    def _note_errors(self, task: StreamTask, number: int) -> None:
        newest: Any = self.mixtures[number].descriptors[-1]
        errors = torch.cat([newest(means) for means in self._means(task, number)])
        newest.mean.copy_(errors.mean())
        newest.std.copy_(errors.std())

    def restore(
        self, done: Sequence[StreamTask], labels: tuple[str, ...], state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        counts: dict[str, int] = {}
        for key in state["adapter"]:
            if found := re.match(r"(.*)\.descriptors\.(\d+)\.", key):
                counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
        order = sorted(counts, key=lambda key: [int(part) if part.isdigit() else 0 for part in key.split(".")])
        self.methods = (self._method(tuple(counts[key] for key in order)),)
        super().restore(done, labels, state)
