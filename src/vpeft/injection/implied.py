"""Which tensors a manifest implies: names, shapes and types of an adapter, without the memory that it would take.

The methods and the head are asked for their layers on the meta device, under a budget that the tensors of the file
justify. So a manifest that asks for more than its file holds is refused before it has cost anything.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from ..backbones.backbone import Backbone
from ..errors import VpeftError
from .adapter import Adapter, edits_of
from .heads import feature_width
from .placed import MethodLike, placed_methods
from .statistics import batch_norms

# Tensors up to this size are made in earnest, as layers compute with them (indices, tables of a few positions).
SMALL = 2**16
ALL_SMALL = 2**23  # in all; further ones are made on the meta device
# Layers make more than they keep: a factor that is replaced, a mask. Counted per tensor and per byte of the file.
SLACK = 16
AT_LEAST = 4096  # modules and tensors that any file may imply
AT_LEAST_ELEMENTS = 2**24


class TooMuch(VpeftError):
    """More than the file's tensors justify."""


class Budget(TorchFunctionMode):
    """Makes tensors on the meta device, and counts what is made in this thread.

    Args:
        tensors: how many the file holds.
        elements: how many numbers they hold.
        device: where to make them; None counts alone, for models that look at what they make.
    """

    def __init__(self, tensors: int, elements: int, device: str | None = "meta") -> None:
        super().__init__()
        self._device = device
        self._small = ALL_SMALL
        self.left = SLACK * tensors + AT_LEAST
        self.elements = SLACK * elements + AT_LEAST_ELEMENTS
        self._thread = threading.get_ident()
        self._makers = _device_constructors()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in self._makers:
            self._count(1)
            if (
                self._device is not None
                and named.get("device") is None
                and not (self._small > 0 and _small(func, args, named))
            ):
                named["device"] = self._device
        if func is Tensor.copy_ and args[1].is_meta and not args[0].is_meta:
            return args[0]  # a small tensor filled by a large one, whose values nobody looks at
        made = func(*args, **named)
        if func in self._makers and isinstance(made, Tensor):
            self._small -= 0 if made.is_meta else made.numel()
            self._add(made.numel())
        return made

    def noted(self, module: nn.Module, name: str, made: Any) -> None:
        """A module has got a parameter, a buffer or a part."""
        if threading.get_ident() == self._thread:
            self._count(1)
            if isinstance(made, Tensor):
                self._add(made.numel())

    def _add(self, elements: int) -> None:
        self.elements -= elements
        if self.elements < 0:
            raise TooMuch("it implies far more numbers than it holds")

    def _count(self, things: int) -> None:
        self.left -= things
        if self.left < 0:
            raise TooMuch("it implies far more layers than it holds tensors for")


@contextmanager
def budget(tensors: int, elements: int, device: str | None = "meta") -> Iterator[Budget]:
    """Within it, whatever this thread makes is on the meta device and counted; see `Budget`."""
    counted = Budget(tensors, elements, device)
    handles = [
        register_module_parameter_registration_hook(counted.noted),
        register_module_buffer_registration_hook(counted.noted),
        register_module_module_registration_hook(counted.noted),
    ]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), counted:
            yield counted
    finally:
        for handle in handles:
            handle.remove()


def implied_tensors(
    description: Backbone,
    methods: Callable[[], Sequence[MethodLike]],
    head: Callable[[], nn.Module | None],
    *,
    statistics: Literal["frozen", "adapt"],
    train: Sequence[str],
) -> dict[str, Tensor]:
    """The tensors of the adapter on the meta device, by the names that an adapter file has for them.

    It is called within `budget`. Nothing of the backbone is touched.

    Args:
        description: of the backbone.
        methods: makes the methods.
        head: makes the head.
        statistics, train: as `TunedModel.attach` has them.

    Raises:
        VpeftError: the methods, the head or the parts do not fit the backbone, or the budget is spent.
    """
    edits = edits_of(description, placed_methods(description, tuple(methods())))
    edits += [description.module_place(part).unfreeze() for part in train]
    made = head()
    feature_width(edits, description)
    adapter = Adapter("implied", made)
    if statistics == "adapt":
        for prefix, module in batch_norms(description.root):
            node = adapter.reach(["statistics", *prefix.split(".")])
            for key, buffer in module.named_buffers(recurse=False):
                node.register_buffer(key, torch.empty_like(buffer, device="meta"))
    taken: set[tuple[int, str]] = set()
    precision = next(p for p in description.root.parameters() if p.is_floating_point()).dtype
    for edit in edits:
        if edit.layer is not None:
            edit.layer.to(dtype=precision)
            adapter.put(edit)
            continue
        node = adapter.reach([*edit.place.name.split("."), _free(adapter, edit.place.name, str(edit.verb))])
        for name in edit.parameters:
            module, attribute = edit.place.parameter(name)
            original = module._parameters[attribute]
            if original is None or (id(module), attribute) in taken:
                continue
            taken.add((id(module), attribute))
            *path, leaf = name.split(".")
            parameter = nn.Parameter(torch.empty_like(original, device="meta"), requires_grad=False)
            node.reach(path).register_parameter(leaf, parameter)
    return adapter.tensors()


def _free(adapter: Adapter, place: str, verb: str) -> str:
    """The name under which `Adapter.put` enters one more edit of a place."""
    node, name, number = adapter.reach(place.split(".")), verb, 2
    while name in node._modules:
        name = f"{verb}_{number}"
        number += 1
    return name


def _small(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether a tensor is small enough to be made in earnest; what cannot be told is not."""
    size = named.get("size")
    if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy):
        return True  # it holds what is in memory already
    if func is torch.arange:
        numbers = [one for one in args if isinstance(one, (int, float))]
        return len(numbers) == len(args) and all(abs(one) <= SMALL for one in numbers) and "end" not in named
    if func in (torch.linspace, torch.logspace):
        steps = named.get("steps", args[2] if len(args) > 2 else None)
        return isinstance(steps, int) and steps <= SMALL
    given = args if size is None else (size,)
    if func in (torch.full,):
        given = given[:1]
    flat = [one for part in given for one in (part if isinstance(part, (tuple, list)) else (part,))]
    return all(isinstance(one, int) for one in flat) and math.prod(flat) <= SMALL
