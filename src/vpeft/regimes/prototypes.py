"""Learners whose classifier is the nearest class mean: with an adapter of the first task, or with the frozen model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vpeft.heads.prototype import PrototypeHead
from vpeft.regimes.class_means import ClassMeans
from vpeft.regimes.first_session import FirstSession
from vpeft.regimes.learner import Setting
from vpeft.regimes.stream import StreamTask


class NearestMean(FirstSession):
    """score_c = cos(f(x), mean of f over the training images of class c)."""

    def __init__(self, setting: Setting, method: str, first_head: str, places: tuple[str, ...]) -> None:
        super().__init__(setting, method, first_head, f"prototype(places=[{', '.join(places)}])")
        self.means = ClassMeans()

    def sum_up(self, task: StreamTask, labels: tuple[str, ...]) -> None:
        features, numbers = self.features(task)
        self.means.add(features, numbers, len(labels))
        assert isinstance(self.head, PrototypeHead)
        # earlier classes of a class stream have no further images, so that their rows do not change
        self.head.set_rows(task.first, self.means.means()[task.first :])

    def sums(self) -> dict[str, Tensor]:
        return self.means.tensors()

    def load_sums(self, tensors: Mapping[str, Tensor]) -> None:
        self.means.load(dict(tensors))
