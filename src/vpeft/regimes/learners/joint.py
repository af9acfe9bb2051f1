"""Joint training: the upper bound, which keeps all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from vpeft.regimes.learner import Learner, Learning, MethodText, Setting, methods_of, register_learner
from vpeft.regimes.one_adapter import OneAdapter, SomeClasses
from vpeft.regimes.stream import StreamTask, joined


@register_learner("joint")
class Joint(Learner):
    """After each task a fresh adapter is trained on the images of all tasks so far, over all their classes."""

    keeps: ClassVar[Literal["nothing", "statistics", "images"]] = "images"

    method: MethodText = "linear_probe"
    """what is trained: methods as everywhere, such as lora(rank=4)"""
    head: Literal["linear", "cosine"] = "linear"
    """the head"""

    def start(self, setting: Setting) -> Learning:
        return JointLearning(self, setting)


class JointLearning(OneAdapter):
    """See `Joint`."""

    def __init__(self, options: Joint, setting: Setting) -> None:
        super().__init__(setting, methods_of(options.method), options.head)

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        self._tuned = None
        self.begin(task, labels)
        self.train(task, joined([*past, task]), what=SomeClasses(labels=labels))
        self.end(task)
