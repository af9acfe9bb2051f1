"""Learning without forgetting: the new model answers on new images as the old one did, for the old classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.nn import functional

from vpeft.batch import Batch
from vpeft.regimes.learner import Learner, Learning, MethodText, Setting, methods_of, register_learner
from vpeft.regimes.one_adapter import OneAdapter, SomeClasses
from vpeft.regimes.stream import StreamTask
from vpeft.training.randomness import untouched_randomness

TEACHER = "teacher"


@register_learner("lwf", paper="1606.09282")
class LwF(Learner):
    """Cross-entropy over the task's classes + weight * T^2 KL(softmax(y' / T) || softmax(y / T)) over the earlier ones.

    y' are the outputs of the model before the task, for the same new images. Sequential fine-tuning with this second
    part of the loss; the factor T^2 (Hinton et al., 1503.02531) keeps its gradient for any T.
    """

    method: MethodText = "lora"
    """what is trained: methods as everywhere"""
    head: Literal["linear", "cosine"] = "linear"
    """the head, which grows"""
    temperature: float = Field(default=2.0, gt=0)
    """T"""
    weight: float = Field(default=1.0, ge=0)
    """of the second part of the loss; 1 in the paper, 3 in PILOT"""

    def start(self, setting: Setting) -> Learning:
        return LwFLearning(self, setting)


class Distilled(SomeClasses):
    """`SomeClasses` with the distance to a teacher's outputs for the classes before `first`."""

    softened: float = 2.0
    """T, by which both outputs are divided"""
    weight: float = 1.0
    """of the distance"""
    _teacher: Callable[[Tensor], Tensor] | None = PrivateAttr(default=None)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy, and the distillation where there is a teacher."""
        parts = super().loss(outputs, batch)
        if self._teacher is None:
            return parts
        told = self._teacher(batch.inputs)
        parts["distillation"] = self.weight * distance(outputs[:, : self.first].float(), told, self.softened)
        return parts


def distance(outputs: Tensor, told: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(told / T) || softmax(outputs / T)), the mean over the rows of (B, K)."""
    student = (outputs / temperature).log_softmax(1)
    teacher = (told / temperature).log_softmax(1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


class LwFLearning(OneAdapter):
    """See `LwF`."""

    def __init__(self, options: LwF, setting: Setting) -> None:
        super().__init__(setting, methods_of(options.method), options.head)
        self.options = options

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        teacher = self._teacher() if task.first else None
        self.begin(task, labels)
        options = self.options
        what = Distilled(labels=labels, first=task.first, softened=options.temperature, weight=options.weight)
        what._teacher = teacher
        # the teacher needs the images themselves, not cached outputs of the frozen part
        self.train(task, what=what, acceleration=None if teacher is None else "off")
        self.end(task)
        if teacher is not None:
            self.tuned.detach(TEACHER)

    def _teacher(self) -> Callable[[Tensor], Tensor]:
        """The model as it is now, as a second adapter on the same backbone."""
        tuned = self.tuned
        name = tuned.adapter().name
        state = {key: value.clone() for key, value in tuned.adapter_state().items()}
        with untouched_randomness():
            head = type(self.head)(**self.head.settings)
            tuned.attach(*self.methods, name=TEACHER, head=head)
        tuned.load_adapter_state(state, TEACHER)
        tuned.enable(name)

        def outputs(images: Tensor) -> Tensor:
            tuned.adapter(TEACHER).eval()
            with torch.no_grad(), tuned.enable(TEACHER):
                found: Tensor = tuned(images)
            return found.float()

        return outputs
