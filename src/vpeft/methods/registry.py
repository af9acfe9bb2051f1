"""The list of methods, made by finding the files of this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Literal, TypeVar

from ..errors import VpeftError, nearest
from .method import Method

Category = Literal["baseline", "addition", "partial", "unified", "multi-task"]
Family = Literal["baseline", "adapter", "prompt", "prefix", "side", "specification", "reparameter", "unified"]
MethodT = TypeVar("MethodT", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}
_CATEGORIES: dict[Family, Category] = {
    "baseline": "baseline",
    "adapter": "addition",
    "prompt": "addition",
    "prefix": "addition",
    "side": "addition",
    "specification": "partial",
    "reparameter": "partial",
    "unified": "unified",
}


class UnknownMethod(VpeftError):
    """No method has this name."""


def register(
    name: str,
    *,
    family: Family,
    paper: str = "",
    category: Category | None = None,
    year: int | None = None,
    venue: str = "",
) -> Callable[[MethodT], MethodT]:
    """Enter the decorated class under `name`.

    Args:
        name: snake case, as the paper calls the method; the file has the same name.
        family: the survey's family.
        paper: arXiv number, or the venue where there is none.
        category: the survey's category; that of the family where it is not given.
        year: of the publication at `venue`; None for what has no paper of its own.
        venue: conference or journal, "arXiv" for a preprint, empty where it is not known.
    """

    def add(kind: MethodT) -> MethodT:
        taken = _METHODS.get(name)
        if taken is not None and taken.__qualname__ != kind.__qualname__:
            raise ValueError(f"The name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        kind.name, kind.family, kind.paper = name, family, paper
        kind.category, kind.year, kind.venue = category or _CATEGORIES[family], year, venue
        _METHODS[name] = kind
        return kind

    return add


def all_methods() -> dict[str, type[Method]]:
    """Every method by name, sorted."""
    package = importlib.import_module(__package__)
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{found.name}")
    return dict(sorted(_METHODS.items()))


def names() -> list[str]:
    """The names of all methods, sorted."""
    return list(all_methods())


def get(name: str) -> type[Method]:
    """The method with this name.

    Raises:
        UnknownMethod: with the nearest names.
    """
    known = all_methods()
    if name not in known:
        raise UnknownMethod(f"There is no method {name!r}. {nearest(name, known)}")
    return known[name]
