"""`describe(model)`: find the family of a model's class and let it name the places.

A family is one file in vpeft/backbones/families that registers one function. It is found by the dotted names of the
model's class and its bases, so a library is imported only if a model of it exists.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import nn

from ..arguments import one_of, require
from ..errors import VpeftError
from .backbone import Backbone
from .host import describe_host, towers_inside

if TYPE_CHECKING:
    from .own_model import Anatomy


class UnknownBackbone(VpeftError):
    """No family describes this model."""


FramesRule = Literal["interpolate", "first"]
"""How a table of positions in time is fitted to another number of frames: it is interpolated, or its first entries are
taken."""


class FitFrames(Protocol):
    """Makes a video model take clips of `frames` frames, in place; returns sentences on what was changed.

    Raises:
        UnsuitableSize: the model does not take so many.
    """

    def __call__(self, model: nn.Module, frames: int, rule: FramesRule) -> list[str]: ...


@dataclass(frozen=True)
class Family:
    """One registered family: its name, the dotted names of its classes, and the function that describes a model.

    `fit_frames` is given by families of video models.
    """

    name: str
    classes: tuple[str, ...]
    describe: Callable[[nn.Module], Backbone]
    summary: str
    fit_frames: FitFrames | None = None


_FAMILIES: dict[str, Family] = {}


def family(
    name: str, *classes: str, fit_frames: FitFrames | None = None
) -> Callable[[Callable[[nn.Module], Backbone]], Callable[[nn.Module], Backbone]]:
    """Register the decorated function as the family that describes models of the dotted `classes`.

    `fit_frames` makes a video model take another number of frames.
    """

    def add(function: Callable[[nn.Module], Backbone]) -> Callable[[nn.Module], Backbone]:
        summary = (function.__doc__ or "").strip().split("\n")[0]
        _FAMILIES[name] = Family(name, classes, function, summary, fit_frames)
        return function

    return add


def families() -> dict[str, Family]:
    """Return every family by name; it imports all files of vpeft/backbones/families."""
    package = importlib.import_module(f"{__package__}.families")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return dict(sorted(_FAMILIES.items()))


def describe(model: nn.Module, anatomy: Anatomy | dict[str, Any] | Literal["generic"] | None = None) -> Backbone:
    """Describe `model` as named places.

    Args:
        model: a model of a known family; a host (a detector, a CLIP) that contains such models; or any model, with an
            anatomy.
        anatomy: the names of the parts of your own model (an `Anatomy`, or a mapping of its fields), or "generic":
            every linear, convolution and norm under its own module name, without blocks.

    Raises:
        UnknownBackbone: no family knows the model's class or a part of it; the message says what to do.
        BadAnatomy: the anatomy does not fit the model.
    """
    require("describe(model)", model=(model, one_of(nn.Module, says="a model, a torch.nn.Module")))
    known = families()  # also with an anatomy: the files register which layers of their library can be edited
    if anatomy is not None:
        from .own_model import as_anatomy, describe_own

        return describe_own(model, as_anatomy(anatomy))
    entry = _family_of(model, known)
    if entry is not None:
        return entry.describe(model)
    reasons: list[str] = []
    found = towers_inside(model, lambda name, part: _described_part(name, part, known, reasons))
    if found:
        return describe_host(model, found)
    raise UnknownBackbone(
        f"No description knows {type(model).__module__}.{type(model).__qualname__}. {' '.join(reasons)}Say where its"
        " blocks are: describe(model, anatomy=Anatomy(blocks=..., mlp=...)), see docs/own_model.md; or take every"
        ' linear, convolution and norm by its own name, without blocks and prompts: describe(model, anatomy="generic").'
        " On the command line that is --anatomy FILE.toml or --anatomy generic."
        f" Known families: {_listing(known)}. To add one, write a file in vpeft/backbones/families/ (see CONTRIBUTING)."
    )


def family_of(model: nn.Module) -> Family | None:
    """Return the family that describes this model; None if there is none."""
    return _family_of(model, families())


def _family_of(model: nn.Module, known: dict[str, Family]) -> Family | None:
    """The family that knows the model's class, or else the nearest of its bases; None if there is none."""
    for base in type(model).__mro__:
        dotted = f"{base.__module__}.{base.__qualname__}"
        for entry in known.values():
            if dotted in entry.classes:
                return entry
    return None


def _described_part(name: str, part: nn.Module, known: dict[str, Family], reasons: list[str]) -> Backbone | None:
    """Describe a part of a larger model as a tower; if its family refuses it, add the reason to `reasons`."""
    entry = _family_of(part, known)
    if entry is None:
        return None
    try:
        return entry.describe(part)
    except UnknownBackbone as error:
        reasons.append(f"Its part {name} cannot be described: {error} ")
        return None


def _listing(known: dict[str, Family]) -> str:
    return "; ".join(
        f"{entry.name} ({', '.join(c.rpartition('.')[2] for c in entry.classes)})" for entry in known.values()
    )
