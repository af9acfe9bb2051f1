"""`describe(model)`: find the family that knows a model's class and let it name the places.

A family is one file in this folder that registers one function. Families are matched by the dotted name of a class
among the model's bases, so that no library is imported before a model of it exists.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..errors import VpeftError
from .backbone import Backbone


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
    package = importlib.import_module(__package__)
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{found.name}")
    return dict(sorted(_FAMILIES.items()))


def describe(model: nn.Module) -> Backbone:
    """Name the places of `model`.

    Raises:
        UnknownBackbone: no family knows the model's class; the message lists the classes that are known.
    """
    known = families()
    for base in type(model).__mro__:
        dotted = f"{base.__module__}.{base.__qualname__}"
        for entry in known.values():
            if dotted in entry.classes:
                return entry.describe(model)
    listing = "; ".join(
        f"{entry.name} ({', '.join(c.rpartition('.')[2] for c in entry.classes)})" for entry in known.values()
    )
    raise UnknownBackbone(
        f"No description knows {type(model).__module__}.{type(model).__qualname__}. Known families: {listing}."
        " To add one, write one file in vpeft/backbones/ (see CONTRIBUTING)."
    )
