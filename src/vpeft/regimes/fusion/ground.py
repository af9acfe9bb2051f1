"""What a way to fuse works on: the base, the fine-tuned models, and images of their tasks where it looks at any."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpeft.batch import Batch
from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.fusion.sources import CannotFuse, Source
from vpeft.tasks.classification import Classification
from vpeft.training.batches import Batches, Samples
from vpeft.training.randomness import derived_seed

if TYPE_CHECKING:
    from vpeft.backbones.backbone import Backbone


class NoImages(CannotFuse):
    """A way looks at images of every task, and one has none."""


@dataclass
class Ground:
    """The base with the heads of all sources, the sources, and their images.

    Attributes:
        tuned: the base, frozen, with one head for each source; its active adapter changes nothing else.
        sources: the fine-tuned models.
        data: prepared samples of each task; labels in them are not looked at.
        seed: of everything that is drawn.
        workers: loading processes.
        say: is told how far a long way has got.
    """

    tuned: TunedModel
    sources: tuple[Source, ...]
    data: Mapping[str, Samples] = field(default_factory=dict)
    seed: int = 0
    workers: int = 0
    say: Callable[[str], None] = lambda _: None

    @property
    def backbone(self) -> Backbone:
        """The description of the base."""
        return self.tuned.description

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.tuned.parameters()).device

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that any source changed, sorted."""
        return tuple(sorted({name for source in self.sources for name in source.changes}))

    @property
    def base(self) -> dict[str, Tensor]:
        """The values of these parameters in the base."""
        found = dict(self.tuned.backbone.named_parameters())
        return {name: found[name].detach() for name in self.names}

    def changes(self) -> list[dict[str, Tensor]]:
        """What each source added, for all of these parameters: zeros where it changed nothing."""
        base = self.base
        return [
            {name: source.changes.get(name, torch.zeros_like(value)) for name, value in base.items()}
            for source in self.sources
        ]

    def require_images(self, way: str) -> None:
        """Raise `NoImages` unless there are images of every task."""
        lacking = [source.name for source in self.sources if not len(self.data.get(source.name, ()))]
        if lacking:
            raise NoImages(
                f"{way} looks at images of every task, and there are none of {', '.join(lacking)}. Give them:"
                f" data={{{lacking[0]!r}: images}}, or --data {lacking[0]}=SOURCE on the command line. Ways that need"
                " no images: averaging, task_arithmetic, ties, dare, smile."
            )

    def require_classes(self, way: str) -> None:
        """Raise `CannotFuse` unless every task tells classes apart."""
        for source in self.sources:
            if not isinstance(source.task, Classification):
                raise CannotFuse(
                    f"{way} looks at the probabilities of classes, and {source.name!r} is of the task"
                    f" {source.task.name}. Leave it out, or take another way."
                )

    def batches(
        self, source: Source, size: int, *, steps: int | None = None, images: int | None = None
    ) -> Iterator[Batch]:
        """Batches of one task on the device, each with the task's name; in the order of the seed.

        Args:
            source: whose task it is.
            size: samples of a batch.
            steps: how many batches, beginning anew when all were seen; None gives each sample once.
            images: at most so many samples.
        """
        loader = Batches(
            self.data[source.name],
            size,
            seed=derived_seed(self.seed, "fusion", source.name),
            drop_last=steps is not None,
            workers=self.workers,
            reading=source.task,
        )
        given = epoch = 0
        while True:
            seen = 0
            for batch in loader.epoch(epoch):
                if images is not None and seen >= images:
                    break
                part = batch if images is None else batch[0 : images - seen]
                seen, given = seen + len(part), given + 1
                yield part.with_(task=source.name).to(self.device)
                if steps is not None and given >= steps:
                    return
            if steps is None:
                return
            epoch += 1

    def steps(self, size: int, steps: int) -> Iterator[list[Batch]]:
        """One batch of every task for each of so many steps."""
        if steps:
            yield from (
                list(each) for each in zip(*(self.batches(s, size, steps=steps) for s in self.sources), strict=True)
            )

    def heads(self) -> dict[str, nn.Module]:
        """The heads of all sources, copied."""
        return {source.name: copy.deepcopy(source.head) for source in self.sources}

    def report(self, number: int, steps: int, found: str) -> None:
        """Say how far it has got, ten times in all."""
        if number % max(1, steps // 10) == 0 or number == steps:
            self.say(f"{number} of {steps} steps: {found}")

    def outputs(self, values: Mapping[str, Tensor], batch: Batch, tuned: TunedModel | None = None) -> Any:
        """The outputs of the head of a batch's task, with other values in the place of the base's parameters."""
        named = {f"backbone.{name}": value for name, value in values.items()}
        return functional_call(tuned or self.tuned, named, (batch.inputs,), {"batch": batch})

    @contextmanager
    def inputs_of(self, modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
        """Within it, what enters these modules is kept, as rows (n, width), by name."""
        kept: dict[str, list[Tensor]] = {name: [] for name in modules}

        def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, given: kept[name].append(given[0].detach().flatten(0, -2))

        handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()


def entropy(outputs: Tensor) -> Tensor:
    """The mean entropy of class probabilities, of scores (B, K)."""
    logs = outputs.float().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(-1).mean()


def sum_of(changes: Sequence[Mapping[str, Tensor]], factors: Sequence[float]) -> dict[str, Tensor]:
    """sum_n f_n tau_n, tensor by tensor."""
    return {
        name: sum(
            (factor * one[name] for factor, one in zip(factors[1:], changes[1:], strict=True)), factors[0] * value
        )
        for name, value in changes[0].items()
    }
