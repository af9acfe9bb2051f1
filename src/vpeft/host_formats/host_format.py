"""`HostFormat`: between vpeft's batches and what a host's own forward takes and gives.

A convention is one file of this folder, found by what the host's forward takes and gives, never by its name. A host in
its format answers as a head does: in training with {"losses": {name: scalar}}, or with the outputs that the task's own
loss reads; in evaluation with what the task's metric and predictions read.

    objects: a list of mappings, one for each image: `boxes` (N, 4) xyxy in pixels of the batch, `labels` (N,) from 0,
             `scores` (N,), and `masks` (N, 1, H, W), probabilities, where the host gives masks.
    mask:    logits (B, classes, H, W); in training a mapping of `logits` and `losses` where the host has a loss.
    depth:   its logarithm, (B, 1, H, W).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

from vpeft.batch import Batch
from vpeft.errors import VpeftError


class NoHostFormat(VpeftError):
    """No convention is known in which a host takes targets of a kind."""


class HostFormat(ABC):
    """One convention for one kind of target.

    Class attributes:
        kinds: the kinds of target that it serves: "objects", "mask", "depth"; the usual one first.
        gives_masks: whether its objects have masks.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    gives_masks: bool = False

    def __init__(self, host: nn.Module, kind: str) -> None:
        self.host, self.kind = host, kind

    @classmethod
    @abstractmethod
    def fits(cls, host: nn.Module) -> bool:
        """Whether the host's forward takes and gives what this convention says."""

    @property
    @abstractmethod
    def classes(self) -> int | None:
        """How many classes the host tells apart, without a background; None where it tells none apart."""

    @abstractmethod
    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and named arguments of the host's forward for images (B, C, H, W) and the batch's targets."""

    @abstractmethod
    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        """What the host gave, in vpeft's form; see the module."""

    def run(self, host: Callable[..., Any], inputs: Tensor, batch: Batch, training: bool) -> Any:
        """Run the host on a batch; it answers as a head does."""
        positional, named = self.arguments(inputs, batch, training)
        return self.given(host(*positional, **named), inputs, batch, training)


FormatT = TypeVar("FormatT", bound=type[HostFormat])
_FORMATS: list[type[HostFormat]] = []


def register_format(kind: FormatT) -> FormatT:
    """Enter the decorated class."""
    if kind not in _FORMATS:
        _FORMATS.append(kind)
    return kind


def all_formats() -> list[type[HostFormat]]:
    """Every convention; it imports all files of this folder."""
    package = importlib.import_module(__package__ or "vpeft.host_formats")
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return list(_FORMATS)


def served_kinds() -> set[str]:
    """The kinds of target that some convention serves."""
    return {kind for one in all_formats() for kind in one.kinds}


def format_of(host: nn.Module, kind: str) -> HostFormat:
    """The convention of a host for one kind of target.

    Raises:
        NoHostFormat: none fits; the message says which kinds this host takes.
    """
    fitting = [one for one in all_formats() if one.fits(host)]
    for one in fitting:
        if kind in one.kinds:
            return one(host, kind)
    name = type(host).__name__
    if fitting:
        known = ", ".join(sorted({kind for one in fitting for kind in one.kinds}))
        raise NoHostFormat(
            f"{name} learns targets of the kind {known}, and the task gives it {kind}. Take another task."
        )
    raise NoHostFormat(
        f"{name} takes ({', '.join(taken(host)) or 'nothing'}), which is none of the conventions that vpeft knows for"
        f" {kind}. Train it with the task 'host', whose samples are the arguments of the model's own forward."
    )


def usual_format(host: nn.Module) -> HostFormat:
    """The convention of a host for the kind of target that it is made for.

    Raises:
        NoHostFormat: no convention is known for it.
    """
    fitting = [one for one in all_formats() if one.fits(host)]
    return format_of(host, fitting[0].kinds[0] if fitting else "any kind of target")


def run_in_format(model: Any, host: nn.Module, batch: Batch, kind: str, labels: Sequence[str]) -> Any:
    """Run a model that is a whole host on a batch of vpeft's; it answers as a head does.

    Args:
        model: calls the host: `model(*positional, batch=batch, **named)`, in its own mode.
        host: the host itself.
        batch: images (B, C, H, W) and targets.
        kind: of the targets.
        labels: of the task.

    Raises:
        NoHostFormat: no convention is known for it, or it has another number of classes than the task.
    """
    spoken = format_of(host, kind)
    classes = spoken.classes
    if classes is not None and labels and classes != len(labels):
        raise NoHostFormat(
            f"{type(host).__name__} tells {classes} classes apart, and the task has {len(labels)}:"
            f" {', '.join(labels[:10])}. Make the model for as many classes; `vpeft train --host` does."
        )
    return spoken.run(partial(model, batch=batch), batch.inputs, batch, bool(model.training))


def taken(host: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a host's forward, in order."""
    plain = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(host.forward)
    return tuple(name for name, one in signature.parameters.items() if one.kind not in plain)


def fields_given(host: nn.Module) -> frozenset[str]:
    """Names of the fields of a host's output, where its forward is annotated with a data class of them."""
    said = inspect.signature(host.forward).return_annotation
    if isinstance(said, str):
        said = vars(inspect.getmodule(type(host))).get(said.rpartition("|")[2].strip(), said)
    kinds = [one for one in (said, *get_args(said)) if isinstance(one, type) and is_dataclass(one)]
    return frozenset(field.name for kind in kinds for field in fields(kind))


def number_of_labels(host: nn.Module) -> int | None:
    """`num_labels` of a transformers configuration; None where there is none."""
    found = getattr(getattr(host, "config", None), "num_labels", None)
    return None if found is None else int(found)


def target_of(batch: Batch, number: int) -> Mapping[str, Any]:
    """The target of one image of a batch of objects."""
    found: Mapping[str, Any] = batch.targets[number]
    return found


def extents(inputs: Tensor, batch: Batch) -> list[tuple[int, int]]:
    """Height and width of each image inside the padded batch; the whole where the targets do not say."""
    whole = (int(inputs.shape[-2]), int(inputs.shape[-1]))
    if not isinstance(batch.targets, (list, tuple)):
        return [whole] * len(inputs)
    stated = [one.get("size") if isinstance(one, Mapping) else None for one in batch.targets]
    return [whole if size is None else (int(size[0]), int(size[1])) for size in stated]


def pixel_mask(inputs: Tensor, batch: Batch) -> Tensor:
    """(B, H, W), 1 where an image is and 0 where it was padded."""
    mask = torch.zeros(len(inputs), *inputs.shape[-2:], dtype=torch.long, device=inputs.device)
    for row, (height, width) in zip(mask, extents(inputs, batch), strict=True):
        row[:height, :width] = 1
    return mask


def learnt(target: Mapping[str, Any]) -> Tensor:
    """Numbers of the objects that are learnt: all but crowds."""
    crowd = target.get("crowd")
    count = len(target["labels"])
    if crowd is None:
        return torch.arange(count, device=target["labels"].device)
    return torch.nonzero(~torch.as_tensor(crowd, dtype=torch.bool, device=target["labels"].device)).flatten()
