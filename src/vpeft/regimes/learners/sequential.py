"""Sequential fine-tuning: any method is trained on one task after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vpeft.regimes.learner import Learner, Learning, MethodText, Setting, methods_of, register_learner
from vpeft.regimes.one_adapter import OneAdapter, SomeClasses
from vpeft.regimes.stream import StreamTask


@register_learner("sequential")
class Sequential(Learner):
    """The adapter goes on from task to task, and the head gains rows for new classes.

    With classes="task" the loss is over the task's own classes, so that the rows of earlier ones stay as they are:
    what L2P, DualPrompt, CODA-Prompt and InfLoRA do. Methods that know of tasks are told of each (`Method.begin_task`).
    """

    method: MethodText = "linear_probe"
    """what is trained: methods as everywhere, such as lora(rank=4)"""
    head: Literal["linear", "cosine"] = "linear"
    """the head, which grows"""
    classes: Literal["task", "seen"] = "task"
    """the classes that the loss looks at: those of the task, or all so far"""

    def start(self, setting: Setting) -> Learning:
        return SequentialLearning(self, setting)


class SequentialLearning(OneAdapter):
    """See `Sequential`."""

    def __init__(self, options: Sequential, setting: Setting) -> None:
        super().__init__(setting, methods_of(options.method), options.head)
        self.options = options

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        self.begin(task, labels)
        first = task.first if self.options.classes == "task" else 0
        self.train(task, what=SomeClasses(labels=labels, first=first))
        self.end(task)
