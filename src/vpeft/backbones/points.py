"""The vocabulary below the places: layouts, points of a module's execution, and the error for what is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from torch import nn

from ..errors import VpeftError


class NothingRead(VpeftError):
    """An edit that reads another place, or tokens that travel beside the model's own, ran without it."""


class MissingPlace(VpeftError):
    """A method asked for a place, or for a verb at a place, that this backbone does not have."""


class Layout(Enum):
    """How a tensor at a place is laid out. Layers see channels last unless they declare `channels_first = True`."""

    TOKENS = "B,N,D"
    MAP = "B,H,W,D"
    CHANNELS_FIRST = "B,D,H,W"
    VECTOR = "B,D"


@dataclass(frozen=True, eq=False)
class StandIn:
    """A class that takes a module's place while an edit needs a point that the plain forward never passes.

    Attributes:
        module: the live module; its tensors, keys and `isinstance` stay as they are.
        kind: a subclass of its class that computes the same bits and passes the point.
        anchors: identities that `kind` finds in the module's `__dict__` under these names and calls. They are no
            children of the module, so that no key appears. Names start with `vpeft_`.
    """

    module: nn.Module
    kind: type[nn.Module]
    anchors: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Point:
    """One end of a module's execution, where a tensor can be read or replaced.

    Attributes:
        module: the live module.
        side: "input" or "output".
        item: position or keyword of the tensor among the inputs, or its position in a tuple of outputs.
        needs: what must stand in for the modules around, or this point is never passed: where a weight is used without
            calling its module, or where no module begins or ends.
        calls: for a module that runs several times in one forward pass (a dropout that two branches share): the
            modules of which one runs before each of its calls, in order; empty for a module that runs once.
        call: which of these calls is meant.
        overwritten: whether the model later writes into the tensor's memory (an activation in place, x += shortcut), so
            that who wants to see it afterwards must copy it.
    """

    module: nn.Module
    side: Literal["input", "output"]
    item: int | str = 0
    needs: tuple[StandIn, ...] = ()
    calls: tuple[nn.Module, ...] = ()
    call: int = 0
    overwritten: bool = False
