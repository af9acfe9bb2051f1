"""Names of a model's modules as users give them: dotted and whole, or the last part where that says which."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..errors import nearest
from .points import MissingPlace


def whole_name(model: nn.Module, name: str) -> str:
    """The dotted name of the module or parameter that `name` means: `model.decoder` for `decoder`.

    A whole dotted name means itself. Else the outermost modules whose names end with `name` are looked at.

    Raises:
        MissingPlace: there is none, or several; the message names them.
    """
    modules = dict(model.named_modules())
    owner, _, leaf = name.rpartition(".")
    if name and (name in modules or (owner in modules and modules[owner]._parameters.get(leaf) is not None)):
        return name
    ends = list(outermost(key for key in modules if name and key.endswith(f".{name}")))
    if len(ends) == 1:
        return ends[0]
    kind = type(model).__name__
    if ends:
        raise MissingPlace(f"{kind} has several modules {name!r}: {', '.join(ends[:6])}. Give the whole name of one.")
    raise MissingPlace(f"{kind} has no module {name!r}. {nearest(name, [key for key in modules if key])}")


def outermost(names: Iterable[str]) -> Iterable[str]:
    """Those names that lie inside no other one."""
    kept: list[str] = []
    for name in sorted(names, key=lambda one: one.count(".")):
        if not any(name.startswith(f"{outer}.") for outer in kept):
            kept.append(name)
    return kept


def place_name(name: str) -> str:
    """The name of a module as a place: an adapter keeps its own head under `head`."""
    return f"model.{name}" if name.partition(".")[0] == "head" else name
