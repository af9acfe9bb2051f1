"""`vpeft methods`: list the registered methods."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch, members, shown_default
from vpeft.errors import VpeftError
from vpeft.method import Method
from vpeft.methods import all_methods, get


def methods(name: str | None = None, /, *, where: str | None = None, json: Switch = False) -> None:
    """List the methods with their settings; with NAME, all about one.

    Parameters
    ----------
    name:
        One method, for all its settings.
    where:
        Only methods with certain properties, for instance "mergeable and memory < 0.5". The names are those under
        `properties` in the output of --json, for default settings on ViT-B/16; memory is a share of full fine-tuning's.
    json:
        Print JSON instead of a table.
    """
    chosen = {name: get(name)} if name is not None else all_methods()
    described = [describe_method(kind) for kind in chosen.values()]
    if where is not None or json:
        described = with_properties(described, where)
    if json:
        show.as_json(described)
        return
    if where is not None:
        columns = ("method", "family", "parameters", "memory", "merges", "gradients")
        had = [one["properties"] for one in described]
        cells = [
            (
                p["name"],
                p["family"],
                f"{p['parameters']:,}",
                f"{p['memory']:.2f}",
                "yes" if p["mergeable"] else "no",
                p["reach"],
            )
            for p in had
        ]
        show.console().print(show.table(columns, cells))
        show.console().print(Text(f"\n{len(had)} of {len(chosen)} methods. Properties hold for default settings."))
        return
    if name is None:
        rows = [
            (", ".join([one["name"], *one["aliases"]]), one["family"], one["paper"], one["summary"])
            for one in described
        ]
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


def with_properties(described: list[dict[str, Any]], where: str | None) -> list[dict[str, Any]]:
    """Return the methods that pass the filter, with their properties (None if a method does not run)."""
    from vpeft.taxonomy.properties import default_properties
    from vpeft.taxonomy.where import Filter

    full = []
    for one in described:
        try:
            found = asdict(default_properties(one["name"]))
        except VpeftError:  # no place for it on the backbones that are tried, or a setting without a default
            found = None
        full.append({**one, "properties": found})
    if where is None:
        return full
    passes = Filter(where, asdict(default_properties("linear_probe")))
    return [one for one in full if one["properties"] is not None and passes(one["properties"])]


def describe_method(kind: type[Method]) -> dict[str, Any]:
    """Return the contents of lists for a method: names, paper, docstring, fields with defaults."""
    doc = inspect.getdoc(kind) or ""
    return {
        "name": kind.name,
        "aliases": list(kind.aliases),
        "class": kind.__name__,
        "category": kind.category,
        "family": kind.family,
        "paper": kind.paper,
        "year": kind.year,
        "venue": kind.venue,
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
    """Return a type as text: alternatives with bars, choices of a literal, `several of` for sequences."""
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
