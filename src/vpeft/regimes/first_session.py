"""Learners that train on the first task at most, and then sum up features: their head follows in closed form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vpeft.head import make_head
from vpeft.method import Method, get_method
from vpeft.regimes.learner import Features, Setting, Tensors, methods_of, outputs_for
from vpeft.regimes.one_adapter import OneAdapter, SomeClasses, with_other_head
from vpeft.regimes.stream import StreamTask
from vpeft.tasks.classification import Classification
from vpeft.training.randomness import seed_everything, untouched_randomness

# What adds nothing to the backbone: the head alone.
NOTHING = "linear_probe"


class FirstSession(OneAdapter):
    """On task 0 the methods are trained with a head of their own; then another head takes its place for good.

    Args:
        setting: see `Setting`.
        method: trained on the first task; "" for none.
        first_head: the head of that training.
        head: the head that follows in closed form.
    """

    def __init__(self, setting: Setting, method: str, first_head: str, head: str) -> None:
        self.adapts = bool(method)
        found: Sequence[Method] = methods_of(method) if method else (get_method(NOTHING)(),)
        super().__init__(setting, found, first_head if self.adapts else head)
        self.last_head = head

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        self.begin(task, labels)
        if task.number == 0 and self.adapts:
            self.train(task, what=SomeClasses(labels=labels))
            self.end(task)
            with untouched_randomness():
                seed_everything(self.setting.seed_of("head"))
                with_other_head(
                    self.tuned,
                    self.methods,
                    lambda backbone, width: make_head(self.last_head, backbone, width, len(labels)),
                )
                self.tuned.to(self.setting.device)
            self.head_text = self.last_head
            self.tuned.task = Classification(labels)
        self.tuned.eval()
        self.sum_up(task, labels)

    @abstractmethod
    def sum_up(self, task: StreamTask, labels: tuple[str, ...]) -> None:
        """Look at the features of the task's images, without augmentation, and set the head."""

    @abstractmethod
    def sums(self) -> dict[str, Tensor]:
        """What was summed up."""

    @abstractmethod
    def load_sums(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the tensors of `sums`."""

    def state(self) -> Tensors:
        return {**super().state(), "sums": self.sums()}

    def restore(
        self, done: Sequence[StreamTask], labels: tuple[str, ...], state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        self.head_text = self.last_head
        super().restore(done, labels, state)
        self.load_sums(state["sums"])

    def features(self, task: StreamTask) -> tuple[Tensor, Tensor]:
        """What the head reads of all images of a task (N, D), and their class numbers (N,), on the processor."""
        parts = []
        places = self.head.reads
        for place in places:
            adapter = None if place == "query" else self.tuned.adapter().name
            found = list(outputs_for(Features(self.tuned, adapter), task.plain, self.setting))
            parts.append((torch.cat([one for one, _ in found]), torch.cat([numbers for _, numbers in found])))
        return torch.cat([features for features, _ in parts], dim=1), parts[0][1]
