"""A learner with one adapter and one head that grows: the part that trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vpeft.batch import Batch
from vpeft.data.image_set import ImageSet
from vpeft.errors import VpeftError
from vpeft.head import Head, make_head
from vpeft.injection.heads import HeadLike
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.regimes.learner import Learning, Setting, Tensors
from vpeft.regimes.stream import StreamTask
from vpeft.tasks.classification import Classification
from vpeft.training.batches import Batches
from vpeft.training.fit import fit
from vpeft.training.loop import AfterStep
from vpeft.training.optimisation import Optimisation
from vpeft.training.randomness import seed_everything, untouched_randomness


class LoneClass(VpeftError):
    """A task of one class, whose loss has nothing to tell apart."""


class SomeClasses(Classification):
    """Classification whose loss looks at the classes `first` to `end` - 1 alone, as if the others had no outputs."""

    first: int = Field(default=0, ge=0)
    """number of the first class that the loss looks at"""
    end: int | None = None
    """number behind the last one; None for all"""

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean cross-entropy over these classes."""
        local = outputs[:, self.first : self.end].float()
        return {
            "cross_entropy": functional.cross_entropy(
                local, batch.targets - self.first, label_smoothing=self.label_smoothing
            )
        }


class OneAdapter(Learning):
    """One TunedModel; before a task its head grows, and its methods are told that the task begins.

    Args:
        setting: see `Setting`.
        methods: attached once.
        head: the kind of the head, with options.
    """

    def __init__(self, setting: Setting, methods: Sequence[Method], head: str) -> None:
        super().__init__(setting)
        self.methods, self.head_text = tuple(methods), head
        self._tuned: TunedModel | None = None

    @property
    def tuned(self) -> TunedModel:
        """The model, once the first task has begun."""
        assert self._tuned is not None, "no task has begun"
        return self._tuned

    @property
    def model(self) -> nn.Module:
        return self.tuned

    @property
    def head(self) -> Head:
        """The head of the adapter."""
        found = self.tuned.head
        assert isinstance(found, Head)
        return found

    def attached(self, outputs: int, *, verify: bool = True) -> TunedModel:
        """A fresh model with the methods and a head of `outputs` classes, on its device."""
        tuned = tune(
            self.setting.make(),
            *self.methods,
            head=lambda backbone, width: make_head(self.head_text, backbone, width, outputs),
            verify=verify,
        )
        return tuned.to(self.setting.device)

    def begin(self, task: StreamTask, labels: tuple[str, ...]) -> None:
        """Let the head have an output for each class so far, and tell the methods."""
        with untouched_randomness():
            seed_everything(self.setting.seed_of(task.number, "begin"))
            if self._tuned is None:
                self._tuned = self.attached(len(labels))
            elif len(labels) > outputs_of_head(self.head):
                self.tuned.adapter().head = self.head.grown(len(labels))
            self.announce(task.number)
        self.tuned.task = Classification(labels)

    def announce(self, number: int) -> None:
        """Tell the methods that a task begins."""
        for method in self.tuned.methods():
            method.begin_task(self.tuned, number, self.setting.tasks)

    def train(
        self,
        task: StreamTask,
        images: ImageSet | None = None,
        *,
        what: SomeClasses,
        epochs: int | None = None,
        part: str = "train",
        after_step: AfterStep | None = None,
        acceleration: str | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        """Train with `fit`; the rows of the head that the loss does not look at are afterwards bit by bit as before.

        Args:
            task: of the stream.
            images: in place of the task's.
            what: the task that `fit` learns.
            epochs: in place of those of the optimisation.
            part: names this training among several of one task, for its seed.
            after_step, acceleration: see `fit`.
            optimisation: in place of the setting's.
        """
        end = outputs_of_head(self.head) if what.end is None else what.end
        if end - what.first < 2:
            raise LoneClass(
                f"Task {task.number} ({task.name}) has one class, and a loss over the classes of a task alone has"
                " nothing to tell apart there. Choose an increment of two or more, or a learner that compares class"
                " means."
            )
        before = {name: value.clone() for name, value in self.head.state_dict().items()}
        seed = self.setting.seed_of(task.number, part)
        chosen = self.setting.optimisation if optimisation is None else optimisation
        settings = chosen.model_copy(update={"seed": seed})
        fit(
            self.tuned,
            task.train if images is None else images,
            None,
            optimisation=settings,
            epochs=epochs,
            progress=self.setting.progress,
            workers=self.setting.workers,
            after_step=after_step,
            task=what,
            acceleration=acceleration,
        )
        for name, value in self.head.state_dict().items():
            if what.first and value.dim() and len(value) == outputs_of_head(self.head):
                value[: what.first].copy_(before[name][: what.first])
        self.tuned.task = Classification(what.labels)

    def end(self, task: StreamTask) -> None:
        """Let the methods look at the task's images once more, where they want to."""
        for method in self.tuned.methods():
            if type(method).end_task is not Method.end_task:
                with untouched_randomness():
                    method.end_task(self.tuned, self._batches(task))

    def _batches(self, task: StreamTask) -> Iterable[tuple[Tensor, Tensor]]:
        """The training images with their augmentation, in a fixed order of their own."""
        settings = self.setting.optimisation
        batches = Batches(
            task.train, settings.batch, seed=self.setting.seed_of(task.number, "end"), workers=self.setting.workers
        )
        for batch in batches.epoch():
            yield batch.inputs, batch.targets

    def state(self) -> Tensors:
        return {"adapter": dict(self.tuned.adapter_state())}

    def restore(
        self, done: Sequence[StreamTask], labels: tuple[str, ...], state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        with untouched_randomness():
            seed_everything(self.setting.seed_of("restore"))
            self._tuned = self.attached(len(labels), verify=False)
            for task in done:
                self.announce(task.number)
        self.tuned.load_adapter_state(dict(state["adapter"]))
        self.tuned.task = Classification(labels)
        self.tuned.eval()

    def for_file(self) -> TunedModel | None:
        return self._tuned


def outputs_of_head(head: Head) -> int:
    """How many outputs a head has, as its settings say."""
    return int(head.settings["outputs"])


@torch.no_grad()
def with_other_head(tuned: TunedModel, methods: Sequence[Method], head: HeadLike) -> None:
    """Take the only adapter off and put it on again with another head, which may read other places.

    Raises:
        AdapterError: the methods trained the backbone's own weights in place, so they cannot be taken off.
    """
    name = tuned.adapter().name
    kept = {key: value for key, value in tuned.adapter_state().items() if not key.startswith("head.")}
    tuned.detach(name)
    tuned.attach(*methods, name=name, head=head)
    own = {key: value for key, value in tuned.adapter_state().items() if key.startswith("head.")}
    tuned.load_adapter_state({**kept, **own})
