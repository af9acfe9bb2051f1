"""RanPAC: a wide random layer on the features, and a ridge regression on it that is summed up over the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional

from vpeft.heads.random_projection import RandomProjectionHead
from vpeft.regimes.first_session import FirstSession
from vpeft.regimes.learner import Learner, Learning, Setting, methods_of, register_learner
from vpeft.regimes.ridge import NoRidge, chosen_ridge, solution
from vpeft.regimes.stream import StreamTask

NONE = "none"


def _methods_or_none(text: str) -> str:
    if text != NONE:
        methods_of(text)
    return text


@register_learner("ranpac", paper="2307.02251")
class RanPAC(Learner):
    """y = V h, h = relu(f W), W ~ N(0, 1) frozen; V^T = (G + r I)^-1 Q, G = sum H^T H and Q = sum H^T Y over all tasks.

    f is the feature of an adapter that is trained on the first task with a linear head, which is then dropped. r is
    chosen for each task among 1e-8 ... 1e8: V from 80 % of the task's images, in a random order, and the least squared
    error on the rest. The system is solved in double precision.
    """

    keeps: ClassVar[Literal["nothing", "statistics", "images"]] = "statistics"

    method: Annotated[str, AfterValidator(_methods_or_none)] = "adaptformer"
    """what is trained on the first task: a method, or none"""
    projection: int = Field(default=10_000, gt=0)
    """M, the width of the random layer; G has M^2 numbers"""

    def start(self, setting: Setting) -> Learning:
        return RanPACLearning(self, setting)


class RanPACLearning(FirstSession):
    """See `RanPAC`."""

    def __init__(self, options: RanPAC, setting: Setting) -> None:
        seed = setting.seed_of("projection") % 2**31
        head = f"random_projection(projection={options.projection}, seed={seed})"
        super().__init__(setting, "" if options.method == NONE else options.method, "linear", head)
        size = options.projection
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.cross = torch.zeros(size, 0, dtype=torch.float64)

    def sum_up(self, task: StreamTask, labels: tuple[str, ...]) -> None:
        assert isinstance(self.head, RandomProjectionHead)
        features, numbers = self.features(task)
        with torch.no_grad():
            hidden = self.head.hidden(features.to(self.head.random)).double().cpu()
        targets = functional.one_hot(numbers, len(labels)).double()
        order = torch.Generator().manual_seed(self.setting.seed_of(task.number, "ridge"))
        ridge = chosen_ridge(hidden, targets, torch.randperm(len(hidden), generator=order))
        self.gram += hidden.T @ hidden
        self.cross = functional.pad(self.cross, (0, len(labels) - self.cross.shape[1])) + hidden.T @ targets
        solved = solution(self.gram, self.cross, ridge)
        if solved is None:
            raise NoRidge(f"The system of the ridge {ridge:g} cannot be solved; take a smaller projection.")
        self.head.set_weight(solved.T.float())

    def sums(self) -> dict[str, Tensor]:
        return {"gram": self.gram, "cross": self.cross}

    def load_sums(self, tensors: Mapping[str, Tensor]) -> None:
        self.gram, self.cross = tensors["gram"].clone(), tensors["cross"].clone()
