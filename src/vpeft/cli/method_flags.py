"""The flags of all methods: `--<method>.<field>`, with one panel of the help per method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cyclopts import Group

from vpeft.cli.flags import Flag, flags_of, nested
from vpeft.errors import VpeftError
from vpeft.methods import all_methods

# Below the panels of the data and the optimisation, in the order of the names.
_FIRST_PANEL = 100


class StrayFlag(VpeftError):
    """A flag sets a method that this run does not use."""


@lru_cache(maxsize=1)
def all_method_flags() -> tuple[Flag, ...]:
    """Return one flag per field of every registered method; its value goes to `(method name, field)`."""
    made: list[Flag] = []
    for order, (name, kind) in enumerate(all_methods().items()):
        panel = Group(f"--method {name}", sort_key=_FIRST_PANEL + order)
        made += flags_of(kind, group=panel, prefix=f"{name}.", path=(name,))
    return tuple(replace(flag, rare=True) for flag in made)


def chosen_fields(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the typed fields of `method`; raises `StrayFlag` for those of another method."""
    return fields_by_method([method], given).get(method, {})


def fields_by_method(used: Iterable[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the typed fields by method; raises `StrayFlag` for a method that is not in `used`."""
    typed: dict[str, dict[str, Any]] = nested(all_method_flags(), given)
    known = list(used)
    for name, fields in typed.items():
        if name not in known:
            flags = ", ".join(f"--{name}.{field.replace('_', '-')}" for field in fields)
            raise StrayFlag(
                f"{flags}: this run uses {' and '.join(known) or 'no method'}, not {name}. "
                f"Add --method {name}, or leave the flag out."
            )
    return typed
