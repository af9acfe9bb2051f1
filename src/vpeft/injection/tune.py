"""`tune`: describe a model, attach methods to it and verify every edit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from ..arguments import TEXTS, one_of, require
from ..backbones.backbone import Backbone
from ..backbones.describe import describe
from ..backbones.origin import origin_of
from ..backbones.own_model import Anatomy
from .heads import FreshHead, HasHead, HeadLike, looks_fresh, own_head
from .node import AdapterError
from .placed import MethodLike
from .tuned_already import refuse_tuned
from .tuned_model import TunedModel
from .verify import DeadPlace
from .verify import verify as look


def tune(
    model: nn.Module | Backbone,
    *methods: MethodLike,
    on: str | None = None,
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
    """Attach methods to a model, so that few parameters train and all others stay frozen.

    Args:
        model: the pre-trained model, or its description. A host, such as a detector or a CLIP, is accepted too: `tune`
            edits the tower inside, and the host's own forward pass runs.
        methods: one method, or several that act together in this order. For a host, mappings from names to methods:
            of its towers ({"image": VPTDeep(), "text": LoRA()}; "*" means all together, and the only tower is "image")
            and of its parts, by module name ({"image": AdaptFormer(), "decoder": LoRA()}).
        on: the tower or part of a host that the methods act on: `tune(detr, LoRA(), on="decoder")` is short for
            `tune(detr, {"decoder": LoRA()})`.
        num_classes: classes of a new linear head. Without num_classes, head and task, the model's own head stays,
            frozen; a `FreshHead` warns if its weights look as they were initialised.
        head: a head of your own: a `Head`, a module (B, D) -> anything, a function (description, width) -> head, or a
            mapping from task names to these.
        task: the task; it makes the head, and the adapter keeps it for training, evaluation and saving.
        train: names of further modules of the model that train, such as a detector's own head. Layers that
            `create_backbone` initialised for another number of channels train too.
        name: the name of the adapter.
        statistics: "adapt" updates the running statistics of the backbone's BatchNorm layers in training and saves
            them with the adapter; "frozen" keeps the pre-trained statistics.
        anatomy: for a model that no family knows; see `describe`.
        verify: check with two random inputs of the tower that every edit has an effect and gets a gradient. Skipped
            for a model on the meta device.
        show: print the plan, which `tuned.plan()` returns.

    Returns:
        The model with the adapter attached and enabled.

    Raises:
        MissingPlace: the method needs a place that this backbone does not have.
        TunedAlready: another TunedModel acts on the model; attach to that one, or take its adapters off.
        DeadPlace: an edit has no effect, or does not start as the method states; the message names it.
        NotTogether: several methods were given, and a pass with all of their edits fails.
    """
    require(
        "tune(model, method)",
        model=(model, one_of(nn.Module, Backbone, says="a model, a torch.nn.Module")),
        train=(train, TEXTS),
    )
    refuse_tuned(model.root if isinstance(model, Backbone) else model)
    if on is not None:
        methods = _placed_on(on, methods)
    tuned = TunedModel(model if isinstance(model, Backbone) else describe(model, anatomy))
    origin = origin_of(tuned.backbone)
    fresh = () if origin is None else tuple(part for part in origin.fresh if part not in train)
    train = (*train, *fresh)
    tuned.attach(*methods, name=name, num_classes=num_classes, head=head, task=task, statistics=statistics, train=train)
    if verify and not any(p.is_meta for p in tuned.backbone.parameters()):
        report = look(tuned, name, first=True)
        if not report:
            raise DeadPlace(" ".join(report.problems))
    own = own_head(tuned.description, tuned.head, [parameter for _, parameter in tuned.trainable()])
    if own is not None and looks_fresh(own):
        warnings.warn(
            f"No new head was asked for, so {tuned.description.facts.architecture} keeps its own classifier, frozen,"
            " and its weights look as they were initialised. Give num_classes or a head, or name the classifier in"
            " train=(...).",
            FreshHead,
            stacklevel=2,
        )
    if show:
        from ..safe_text import SafeConsole

        SafeConsole().print(tuned.plan(name))
    return tuned


def _placed_on(part: str, methods: Sequence[MethodLike]) -> tuple[MethodLike, ...]:
    """The methods on one tower or part of a host."""
    named = next((one for one in methods if isinstance(one, Mapping)), None)
    if named is not None:
        raise AdapterError(
            f"on={part!r} places every method, and a mapping places its own: {', '.join(map(str, named))}. Give one"
            " of the two."
        )
    return tuple({part: one} for one in methods if not isinstance(one, Mapping))
