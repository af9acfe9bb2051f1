"""`tune`: describe a model, put methods on it, print the plan, prove that it is alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.describe import describe
from ..backbones.origin import origin_of
from ..backbones.own_model import Anatomy
from .heads import HasHead, HeadLike
from .placed import MethodLike
from .tuned_model import TunedModel
from .verify import DeadPlace
from .verify import verify as look


def tune(
    model: nn.Module | Backbone,
    *methods: MethodLike,
    num_classes: int | None = None,
    head: HeadLike | None = None,
    task: HasHead | None = None,
    train: Sequence[str] = (),
    name: str = "default",
    statistics: Literal["frozen", "adapt"] = "frozen",
    anatomy: Anatomy | dict[str, Any] | Literal["generic"] | None = None,
    verify: bool = True,
    show: bool = False,
) -> TunedModel:
    """Make a backbone trainable by a few parameters.

    Args:
        model: the pre-trained model, or its description; or a host, a larger model such as a detector or a CLIP, whose
            tower is then edited and whose own forward pass runs.
        methods: one, or several that act together in this order. For a host with several towers, mappings from their
            names to methods: {"image": VPTDeep(), "text": LoRA()}; "*" stands for all of them together.
        num_classes: classes of a new linear head; without it, a head or a task, the model's own is kept, frozen.
        head: a head of your own instead: a `Head`, a module (B, D) -> anything, a function of (description, width) that
            makes one, or a mapping from names of tasks to these.
        task: what is learnt; it makes the head, and the adapter remembers it for training, scoring and saving.
        train: names of further modules of the model that train as they are, such as a detector's own head. What
            `create_backbone` had to make anew for other channels trains too.
        name: of the adapter.
        statistics: "adapt" lets the running statistics of the backbone's BatchNorm layers move in training, and saves
            them with the adapter; "frozen" leaves them as they were pre-trained.
        anatomy: for a model that no family knows; see `describe`.
        verify: prove on two random inputs of the tower that every edit is alive. Skipped for a model on the meta
            device.
        show: print the plan; `tuned.plan()` gives it.

    Raises:
        MissingPlace: the method asks for a place that this backbone does not have.
        DeadPlace: an edit would do nothing, or breaks a promise; the message lists which.
    """
    tuned = TunedModel(model if isinstance(model, Backbone) else describe(model, anatomy))
    origin = origin_of(tuned.backbone)
    fresh = () if origin is None else tuple(part for part in origin.fresh if part not in train)
    train = (*train, *fresh)
    tuned.attach(*methods, name=name, num_classes=num_classes, head=head, task=task, statistics=statistics, train=train)
    if verify and not any(p.is_meta for p in tuned.backbone.parameters()):
        report = look(tuned, name, first=True)
        if not report:
            raise DeadPlace(" ".join(report.problems))
    if show:
        from rich.console import Console

        Console().print(tuned.plan(name))
    return tuned
