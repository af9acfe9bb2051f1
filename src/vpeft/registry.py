"""A list of classes by name, made from the files of one package; and what a wrong option of such a class says."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Generic, TypeVar

from pydantic import ValidationError

from .errors import nearest

KindT = TypeVar("KindT")


class Registry(Generic[KindT]):
    """Classes by name. Each file of the package enters its own when it is imported; its name is that of the file.

    Args:
        package: dotted name of the package that holds the files.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self._kinds: dict[str, type[KindT]] = {}

    def add(self, name: str, kind: type[KindT]) -> None:
        """Enter a class; the same class once more, from a reloaded file, takes its own place.

        Raises:
            ValueError: another class has the name.
        """
        taken = self._kinds.get(name)
        if taken is not None and taken.__qualname__ != kind.__qualname__:
            raise ValueError(f"The name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        self._kinds[name] = kind

    def all(self) -> dict[str, type[KindT]]:
        """Every class by name, sorted; imports the files of the package."""
        package = importlib.import_module(self.package)
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{found.name}")
        return dict(sorted(self._kinds.items()))


def wrong_options(whose: str, name: str, options: Iterable[str], error: ValidationError) -> str:
    """What pydantic found wrong with the options of a class, as sentences.

    Args:
        whose: the class at the beginning of a sentence, "The task depth".
        name: of the class, before an option: depth.scale.
        options: that there are, of which the nearest is named.
        error: what pydantic found.
    """
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{whose} has no option {where!r}. {nearest(where, options)}")
        elif problem["type"] == "missing":
            lines.append(f"{name}.{where} is missing; it has no default.")
        else:
            said = problem["msg"].removeprefix("Value error, ").rstrip(".")
            lines.append(f"{name}.{where} = {problem['input']!r}: {said}." if where else f"{name}: {said}.")
    return " ".join(lines)
