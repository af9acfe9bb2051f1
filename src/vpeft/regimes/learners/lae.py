"""LAE: an adapter that learns, a slow average of it that accumulates, and the more certain of both that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.learner import Learner, Learning, MethodText, Setting, Tensors, methods_of, register_learner
from vpeft.regimes.one_adapter import OneAdapter, SomeClasses
from vpeft.regimes.stream import StreamTask
from vpeft.training.randomness import untouched_randomness

OFFLINE = "offline"


@register_learner("lae", paper="2303.10070")
class LAE(Learner):
    """p = max(softmax(y_online), softmax(y_offline)) elementwise, over all classes so far; the head is one.

    The online adapter learns each task by a cross-entropy over the task's classes; from the second task on it is frozen
    for the first `frozen` of the epochs, in which the new rows of the head alone train. The offline adapter begins as a
    copy before the second task and then follows, a <- d a + (1 - d) w after each step.

    The method is any: the paper has parallel adapters of width 5, LoRA of rank 5 on k and v, and prefixes of 10, all in
    the first five blocks. Departure: the two parts of a task are two trainings, each with a fresh optimiser.
    """

    method: MethodText = "lora(rank=5, targets=[k, v])"
    """what learns"""
    decay: float = Field(default=0.9999, ge=0, lt=1)
    """d"""
    frozen: float = Field(default=0.6, ge=0, lt=1)
    """share of a task's epochs with a frozen adapter, from the second task on"""

    def start(self, setting: Setting) -> Learning:
        return LAELearning(self, setting)


class LAELearning(OneAdapter):
    """See `LAE`."""

    def __init__(self, options: LAE, setting: Setting) -> None:
        super().__init__(setting, methods_of(options.method), "linear")
        self.options = options

    @property
    def model(self) -> nn.Module:
        return MoreCertain(self.tuned, self.tuned.adapter().name) if self.has_offline else self.tuned

    @property
    def has_offline(self) -> bool:
        """Whether there is an offline adapter: from the second task on."""
        return OFFLINE in self.tuned.adapters

    def learn(self, task: StreamTask, labels: tuple[str, ...], past: Sequence[StreamTask] = ()) -> None:
        self.begin(task, labels)
        what = SomeClasses(labels=labels, first=task.first)
        if not task.number:
            self.train(task, what=what)
            self.end(task)
            return
        if not self.has_offline:
            self.add_offline()
        epochs = self.setting.optimisation.epochs
        frozen = min(round(self.options.frozen * epochs), epochs - 1)
        if frozen:
            adapter = self.tuned.adapter()
            own = [(parameter, parameter.requires_grad) for name, parameter in adapter.owned() if name[:5] != "head."]
            for parameter, _ in own:
                parameter.requires_grad_(False)
            self.train(task, what=what, epochs=frozen, part="head", after_step=self.follow)
            for parameter, trains in own:
                parameter.requires_grad_(trains)
        self.train(task, what=what, epochs=epochs - frozen, after_step=self.follow)
        self.end(task)

    def add_offline(self) -> None:
        """Add the offline adapter, a copy of the online one without its head."""
        tuned, name = self.tuned, self.tuned.adapter().name
        with untouched_randomness():
            tuned.attach(*self.methods, name=OFFLINE, head=nn.Identity())
        tuned.enable(name)
        state = tuned.adapter_state(name)
        tuned.load_adapter_state({key: state[key].clone() for key in tuned.adapter_state(OFFLINE)}, OFFLINE)

    @torch.no_grad()
    def follow(self, tuned: TunedModel) -> None:
        """a <- d a + (1 - d) w for every parameter; buffers are those of the online adapter."""
        online = tuned.adapter_state()
        slow = {name for name, _ in tuned.adapter(OFFLINE).owned()}
        for key, value in tuned.adapter_state(OFFLINE).items():
            if key in slow:
                value.lerp_(online[key], 1 - self.options.decay)
            else:
                value.copy_(online[key])

    def state(self) -> Tensors:
        kept = super().state()
        return {**kept, OFFLINE: dict(self.tuned.adapter_state(OFFLINE))} if self.has_offline else kept

    def restore(
        self, done: Sequence[StreamTask], labels: tuple[str, ...], state: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        super().restore(done, labels, state)
        if OFFLINE in state:
            self.add_offline()
            self.tuned.load_adapter_state(dict(state[OFFLINE]), OFFLINE)
            self.tuned.eval()

    def for_file(self) -> TunedModel | None:
        return None if self.has_offline else self.tuned


class MoreCertain(nn.Module):
    """Images -> max(softmax(y_online), softmax(y_offline)), (B, K), with the online adapter's head for both."""

    def __init__(self, tuned: TunedModel, online: str) -> None:
        super().__init__()
        self.tuned, self.online = tuned, online

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), each from 0 to 1."""
        with self.tuned.enable(self.online):
            found: Tensor = self.tuned(images)
        with self.tuned.enable(OFFLINE):
            features = self.tuned.features(images)
        head = self.tuned.adapter(self.online).head
        assert head is not None
        return torch.maximum(found.softmax(1), head(features).softmax(1))
