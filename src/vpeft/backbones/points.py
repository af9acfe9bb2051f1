"""The vocabulary below the places: layouts, points of a module's execution, and the error for what is not there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from torch import nn

from ..errors import VpeftError


class MissingPlace(VpeftError):
    """A method asked for a place, or for a verb at a place, that this backbone does not have."""


class Layout(Enum):
    """How a tensor at a place is laid out. Layers see channels last unless they declare `channels_first = True`."""

    TOKENS = "B,N,D"
    MAP = "B,H,W,D"
    CHANNELS_FIRST = "B,D,H,W"
    VECTOR = "B,D"


@dataclass(frozen=True, eq=False)
class Point:
    """One end of a module's execution, where a tensor can be read or replaced.

    Attributes:
        module: the live module.
        side: "input" or "output".
        item: position or keyword of the tensor among the inputs, or its position in a tuple of outputs.
    """

    module: nn.Module
    side: Literal["input", "output"]
    item: int | str = 0
