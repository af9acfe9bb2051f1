"""Arguments of the public functions: one of a wrong kind is refused at once, in one sentence that names it.

`require` compares what was given with its `Kind`. It looks at types only, so it costs nothing beside the work that
follows, and what the values mean is checked by those who use them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from itertools import permutations
from numbers import Integral
from typing import Any, Self

from .errors import VpeftError
from .guarded import printable


class WrongArgument(VpeftError, TypeError):
    """An argument is of a wrong kind."""


@dataclass(frozen=True)
class Kind:
    """What an argument must be, in words and as a test; and what to do with a wrong one, where that is known."""

    says: str
    fits: Callable[[Any], bool]
    hint: Callable[[Any], str] = lambda _: ""

    def or_none(self) -> Self:
        """The same kind, or None."""
        return type(self)(f"{self.says}, or None", lambda value: value is None or self.fits(value), self.hint)


def one_of(*kinds: type, says: str) -> Kind:
    """The kind of the objects of some classes."""
    return Kind(says, lambda value: isinstance(value, kinds))


def list_of(*kinds: type, says: str) -> Kind:
    """The kind of the lists and tuples of objects of some classes."""
    return Kind(says, lambda value: isinstance(value, (list, tuple)) and all(isinstance(one, kinds) for one in value))


def _path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(name := os.fspath(value)) and "\0" not in str(name)


def _samples(value: Any) -> bool:
    is_set = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return is_set and not isinstance(value, (str, bytes, Mapping, type))


def _of_loader(value: Any) -> str:
    if not _samples(getattr(value, "dataset", None)):
        return ""
    return " Give the data set that it loads, loader.dataset: batches, order and loading are decided here."


def _texts(value: Any) -> bool:
    listed = isinstance(value, Collection) and not isinstance(value, (str, bytes))
    return listed and all(isinstance(one, str) for one in value)


PATH = Kind("a path", _path)
TEXT = one_of(str, says="a text")
TEXTS = Kind("a list of texts", _texts)
IN_ORDER = Kind("a list of texts", lambda value: _texts(value) and not isinstance(value, (Set, Mapping)))
WHOLE = Kind("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool))
COUNT = Kind("a whole number from 0 on", lambda value: WHOLE.fits(value) and value >= 0)
SAMPLES = Kind("a data set with len(set) and set[i], such as one of torch", _samples, _of_loader)


def require(call: str, /, **given: tuple[Any, Kind]) -> None:
    """Refuse arguments of a wrong kind.

    Args:
        call: how the function is called, for the message: "load(model, path)".
        given: for the name of each argument, its value and its kind.

    Raises:
        WrongArgument: the first argument that does not fit; the message says what it must be and what was given.
    """
    for name, (value, kind) in given.items():
        if not kind.fits(value):
            raise WrongArgument(
                f"{call}: `{name}` must be {kind.says}, and {_said(value)} was given.{_hint(value, kind, given)}"
            )


def _said(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return printable(repr(value), 60)
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _hint(value: Any, kind: Kind, given: Mapping[str, tuple[Any, Kind]]) -> str:
    if isinstance(value, type):
        return f" Give an object of the class: {value.__name__}(...)."
    if said := kind.hint(value):
        return said
    values, kinds = [value for value, _ in given.values()], [kind for _, kind in given.values()]
    if len(given) < 4 and any(
        all(one.fits(other) for one, other in zip(kinds, order, strict=True)) for order in permutations(values)
    ):
        return " The arguments are exchanged."
    return ""
