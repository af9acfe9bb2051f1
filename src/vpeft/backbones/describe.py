"""`describe(model)`: find the family that knows a model's class and let it name the places.

A family is one file in this folder that registers one function. Families are matched by the dotted name of a class
among the model's bases, so that no library is imported before a model of it exists.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..errors import VpeftError
from .backbone import Backbone

if TYPE_CHECKING:
    from .own_model import Anatomy


class UnknownBackbone(VpeftError):
    """No family describes this model."""


@dataclass(frozen=True)
class Family:
    """One registered family: its name, the classes it knows, and the function that describes a model."""

    name: str
    classes: tuple[str, ...]
    describe: Callable[[nn.Module], Backbone]
    summary: str


_FAMILIES: dict[str, Family] = {}


def family(name: str, *classes: str) -> Callable[[Callable[[nn.Module], Backbone]], Callable[[nn.Module], Backbone]]:
    """Register the decorated function as the family that describes models of the dotted `classes`."""

    def add(function: Callable[[nn.Module], Backbone]) -> Callable[[nn.Module], Backbone]:
        summary = (function.__doc__ or "").strip().split("\n")[0]
        _FAMILIES[name] = Family(name, classes, function, summary)
        return function

    return add


def families() -> dict[str, Family]:
    """Every family by name; importing this package's files finds them."""
    package = importlib.import_module(f"{__package__}.families")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")
    return dict(sorted(_FAMILIES.items()))


def describe(model: nn.Module, anatomy: Anatomy | dict[str, Any] | Literal["generic"] | None = None) -> Backbone:
    """Name the places of `model`.

    Args:
        model: a model of a known family; or any model, with an anatomy.
        anatomy: the nouns of a model of your own (an `Anatomy`, or a mapping of its fields), or "generic": every
            linear, convolution and norm under its own module name, and no blocks.

    Raises:
        UnknownBackbone: no family knows the model's class; the message says what can be done.
        BadAnatomy: the anatomy does not fit the model.
    """
    if anatomy is not None:
        from .own_model import as_anatomy, describe_own

        return describe_own(model, as_anatomy(anatomy))
    known = families()
    for base in type(model).__mro__:
        dotted = f"{base.__module__}.{base.__qualname__}"
        for entry in known.values():
            if dotted in entry.classes:
                return entry.describe(model)
    inner = _known_inside(model, known)
    raise UnknownBackbone(
        f"No description knows {type(model).__module__}.{type(model).__qualname__}. {inner}Say where its blocks are:"
        " describe(model, anatomy=Anatomy(blocks=..., mlp=...)), see docs/own_model.md; or take every linear,"
        ' convolution and norm by its own name, without blocks and prompts: describe(model, anatomy="generic").'
        " On the command line that is --anatomy FILE.toml or --anatomy generic."
        f" Known families: {_listing(known)}. To add one, write one file in vpeft/backbones/ (see CONTRIBUTING)."
    )


def _known_inside(model: nn.Module, known: dict[str, Family]) -> str:
    """Which part of a larger model could be described, as a detector's backbone; empty where none."""
    classes = {dotted: entry for entry in known.values() for dotted in entry.classes}
    for name, part in model.named_modules():
        for base in type(part).__mro__:
            entry = classes.get(f"{base.__module__}.{base.__qualname__}")
            if entry is not None:
                return (
                    f"Its part {name}, a {type(part).__name__}, is of the family {entry.name}: tune"
                    f" model.get_submodule({name!r}), and the whole model runs with the adapter. Or else: "
                )
    return ""


def _listing(known: dict[str, Family]) -> str:
    return "; ".join(
        f"{entry.name} ({', '.join(c.rpartition('.')[2] for c in entry.classes)})" for entry in known.values()
    )
