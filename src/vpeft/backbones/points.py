"""Layouts of tensors, points of a module's execution, and the error for places that do not exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from torch import nn

from ..errors import VpeftError


class NothingRead(VpeftError):
    """An edit ran before the place or the inserted tokens that it reads."""


class MissingPlace(VpeftError):
    """A method needs a place, or a verb at a place, that this backbone does not offer."""


class Layout(Enum):
    """The axes of the tensor at a place. Layers receive channels last unless they set `channels_first = True`.

    The maps of clips have a time axis before H: B,T,H,W,D or B,D,T,H,W.
    """

    TOKENS = "B,N,D"
    MAP = "B,H,W,D"
    CHANNELS_FIRST = "B,D,H,W"
    VECTOR = "B,D"


@dataclass(frozen=True, eq=False)
class StandIn:
    """A class that a module gets while an edit needs a point that the module's own forward does not execute.

    Attributes:
        module: the live module; its tensors, keys and `isinstance` stay as they are.
        kind: a subclass of its class that computes the same bits and executes the point.
        anchors: identities that `kind` finds in the module's `__dict__` under these names and calls. They are not
            registered as children, so they add no keys to the state dict. Names start with `vpeft_`.
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
        needs: the stand-ins without which this point is not executed: if a weight is used without calling its module,
            or if no module starts or ends here.
        calls: for a module that runs several times in one forward pass (a dropout that two branches share): one module
            that runs before each of its calls, in order; empty for a module that runs once.
        call: the index of the call that is meant.
        overwritten: whether the model later writes into the tensor's memory (an activation in place, x += shortcut);
            a reader that needs it later must copy it.
    """

    module: nn.Module
    side: Literal["input", "output"]
    item: int | str = 0
    needs: tuple[StandIn, ...] = ()
    calls: tuple[nn.Module, ...] = ()
    call: int = 0
    overwritten: bool = False
