"""`vpeft methods`: what there is, from the registry; nothing is listed by hand."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch, members, shown_default
from vpeft.methods import all_methods, get
from vpeft.methods.method import Method


def methods(name: str | None = None, /, *, json: Switch = False) -> None:
    """List the methods with their settings; with NAME, all about one.

    Parameters
    ----------
    name:
        One method, for all its settings.
    json:
        Print JSON instead of a table.
    """
    chosen = {name: get(name)} if name is not None else all_methods()
    described = [describe_method(kind) for kind in chosen.values()]
    if json:
        show.as_json(described)
        return
    if name is None:
        rows = [(one["name"], one["family"], one["paper"], one["summary"]) for one in described]
        show.console().print(show.table(("method", "family", "paper", "idea"), rows))
        show.console().print(Text(f"\n{len(rows)} methods. `vpeft methods NAME` lists the settings of one."))
        return
    only = described[0]
    out = show.console()
    out.print(Text(f"{only['name']} ({only['class']}), family {only['family']}, paper {only['paper'] or 'none'}\n"))
    out.print(Text(only["doc"] + "\n"))
    settings = [
        (f"--{name}.{key.replace('_', '-')}", field["type"], shown_default(kind) or "", field["description"])
        for (key, field), kind in zip(only["fields"].items(), get(name).model_fields.values(), strict=True)
    ]
    if settings:
        out.print(show.table(("flag", "type", "default", "meaning"), settings))
    else:
        out.print(Text("It has no settings."))


def describe_method(kind: type[Method]) -> dict[str, Any]:
    """All that lists show of a method: its names, its paper, its docstring, its fields with their defaults."""
    doc = inspect.getdoc(kind) or ""
    return {
        "name": kind.name,
        "class": kind.__name__,
        "family": kind.family,
        "paper": kind.paper,
        "summary": doc.split("\n")[0],
        "doc": doc,
        "fields": {
            key: {
                "type": type_name(field.annotation),
                "default": None if field.is_required() else field.get_default(call_default_factory=True),
                "description": field.description or "",
            }
            for key, field in kind.model_fields.items()
        },
    }


def type_name(annotation: Any) -> str:
    """A type as a person would say it: alternatives with bars, the choices of a literal, `several of` for sequences."""
    return " | ".join(dict.fromkeys(_one_type(member) for member in members(annotation)))


def _one_type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in inside)
    if origin in (list, tuple, set, frozenset):
        return f"several of {type_name(inside[0])}"
    if annotation is type(None):
        return "none"
    return getattr(annotation, "__name__", str(annotation))
