"""EASE: an adapter for each task, and class means in the spaces of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vpeft.head import make_head
from vpeft.injection.tune import tune
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.class_means import ClassMeans
from vpeft.regimes.learner import (
    BadLearner,
    Features,
    Learner,
    Learning,
    MethodText,
    Setting,
    Tensors,
    methods_of,
    outputs_for,
    register_learner,
)
from vpeft.regimes.one_adapter import LoneClass
from vpeft.regimes.stream import StreamTask
from vpeft.tasks.classification import Classification
from vpeft.training.fit import fit
from vpeft.training.randomness import seed_everything, untouched_randomness


@register_learner("ease", paper="2403.12030")
class EASE(Learner):
    """y_c = sum_j w_cj cos(f_j(x), p_cj): f_j is the feature of task j's adapter, p_cj the mean of class c in it.

    w is 1 for the adapter of the class's own task, and alpha / (tasks - 1) for the others. Each task trains a fresh
    adapter and a cosine head, which is then dropped. A class o of an earlier task has no images for a new adapter t:
    p_ot = sum_n softmax_n(cos(p_oj, p_nj)) p_nt over the new classes n, compared in o's own space j.

    A prediction costs one pass for each task. The weight of the other spaces follows the code.
    """

    keeps: ClassVar[Literal["nothing", "statistics", "images"]] = "statistics"

    method: MethodText = "adaptformer"
    """the adapter of each task"""
    alpha: float = Field(default=0.1, ge=0)
    """weight of the other tasks' spaces together"""

    def start(self, setting: Setting) -> Learning:
        return EASELearning(self, setting)


class EASELearning(Learning):
    """See `EASE`."""

    def __init__(self, options: EASE, setting: Setting) -> None:
        super().__init__(setting)
        self.options, self.methods = options, methods_of(options.method)
        self._tuned: TunedModel | None = None
        self.means = torch.zeros(0, 0, 0)  # (classes, spaces, D)
        self.homes = torch.zeros(0, dtype=torch.int64)  # the task of each class

    @property
    def model(self) -> nn.Module:
        assert self._tuned is not None, "no task has begun"
        return Subspaces(self._tuned, self.means, self.homes, self.options.alpha).to(self.setting.device)

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        if task.number and not task.first:
            raise BadLearner(
                "EASE keeps a space for the classes of each task; for domains of the same classes take ranpac."
            )
        if task.classes < 2:
            raise LoneClass(
                f"Task {task.number} ({task.name}) has one class, and EASE trains an adapter that tells a task's"
                " classes apart. Choose an increment of two or more."
            )
        own = labels[task.first : task.end]
        with untouched_randomness():
            seed_everything(self.setting.seed_of(task.number, "begin"))
            tuned = self._with_adapter(task.number, len(own))
        seed = self.setting.seed_of(task.number, "train")
        fit(
            tuned,
            task.train.relabelled(own),
            None,
            optimisation=self.setting.optimisation.model_copy(update={"seed": seed}),
            progress=self.setting.progress,
            workers=self.setting.workers,
            task=Classification(own),
        )
        self._drop_head()
        self._add_means(task, len(labels))

    def _with_adapter(self, number: int, classes: int) -> TunedModel:
        """The model with one more adapter, which is on, and a cosine head of so many classes."""
        name = _name(number)
        if self._tuned is None:
            self._tuned = tune(
                self.setting.make(),
                *self.methods,
                name=name,
                head=lambda backbone, width: make_head("cosine", backbone, width, classes),
            ).to(self.setting.device)
        else:
            self._tuned.attach(
                *self.methods, name=name, head=lambda backbone, width: make_head("cosine", backbone, width, classes)
            )
        return self._tuned

    def _drop_head(self) -> None:
        assert self._tuned is not None
        adapter = self._tuned.adapter()
        adapter.head, adapter.task = None, None

    def _add_means(self, task: StreamTask, classes: int) -> None:
        """The means of the new classes in all spaces, and those made up for earlier classes in the new space."""
        assert self._tuned is not None
        spaces = task.number + 1
        found = []
        for space in range(spaces):
            sums = ClassMeans()
            for features, numbers in outputs_for(Features(self._tuned, _name(space)), task.plain, self.setting):
                sums.add(features, numbers, classes)
            found.append(sums.means())
        new = torch.stack(found, dim=1)  # (classes, spaces, D), with rows of this task's classes alone
        if task.first:
            new[: task.first, :-1] = self.means
            for old in range(task.first):
                home = int(self.homes[old])
                new[old, -1] = made_up(new[old, home], new[task.first :, home], new[task.first :, -1])
        self.means = new
        self.homes = torch.cat([self.homes[: task.first], torch.full((task.classes,), task.number)])

    def state(self) -> Tensors:
        assert self._tuned is not None
        adapters = {name: dict(self._tuned.adapter_state(name)) for name in self._tuned.adapters}
        return {**adapters, "means": {"means": self.means, "homes": self.homes}}

    def restore(
        self, done: Sequence[StreamTask], labels: tuple[str, ...], state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        for task in done:
            with untouched_randomness():
                seed_everything(self.setting.seed_of("restore"))
                tuned = self._with_adapter(task.number, task.classes)
            self._drop_head()
            tuned.load_adapter_state(dict(state[_name(task.number)]))
            tuned.eval()
        self.means, self.homes = state["means"]["means"].clone(), state["means"]["homes"].clone()


def _name(number: int) -> str:
    return f"task_{number}"


def made_up(old: Tensor, new: Tensor, new_there: Tensor) -> Tensor:
    """The mean (D,) of an earlier class in a space that it has no images for.

    Args:
        old: its mean in its own space (D,).
        new: the means of the new classes there (n, D).
        new_there: their means in the new space (n, D).
    """
    similar = functional.cosine_similarity(old[None], new, dim=1)
    return similar.softmax(0) @ new_there


class Subspaces(nn.Module):
    """Images -> sum_j w_cj cos(f_j(x), p_cj), (B, K); one pass for each adapter.

    Args:
        tuned: with the adapters of all tasks.
        means: p (K, spaces, D).
        homes: the task of each class (K,).
        alpha: see `EASE`.
    """

    means: Tensor
    weights: Tensor

    def __init__(self, tuned: TunedModel, means: Tensor, homes: Tensor, alpha: float) -> None:
        super().__init__()
        self.tuned = tuned
        spaces = means.shape[1]
        weights = torch.full(means.shape[:2], alpha / max(1, spaces - 1))
        weights[torch.arange(len(homes)), homes] = 1.0
        self.register_buffer("means", means)
        self.register_buffer("weights", weights)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        total = torch.zeros(len(images), len(self.means), device=self.means.device)
        for space in range(self.means.shape[1]):
            with self.tuned.enable(_name(space)):
                features = self.tuned.features(images)
            cosines = functional.normalize(features, dim=1) @ functional.normalize(self.means[:, space], dim=1).T
            total = total + self.weights[:, space] * cosines
        return total
