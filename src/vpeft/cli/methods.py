"""`vpeft methods`: list the registered methods."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch, members, shown_default
from vpeft.errors import VpeftError
from vpeft.method import Method
from vpeft.methods import all_methods, get

if TYPE_CHECKING:
    from vpeft.taxonomy.properties import Properties


def methods(
    name: str | None = None,
    /,
    *,
    where: str | None = None,
    like: str | None = None,
    ledger: Path | None = None,
    json: Switch = False,
) -> None:
    """List the methods with their settings; with NAME, all about one and which others are near it.

    Parameters
    ----------
    name:
        One method, for all its settings.
    where:
        Only methods with certain properties, for instance "mergeable and memory < 0.5". The names are those under
        `properties` in the output of --json, for default settings on ViT-B/16; memory is a share of full fine-tuning's.
    like:
        Only methods that fit all wishes, for instance "merges, no latency, under 0.5 % parameters, good on structured".
        A word that is not known lists those that are.
    ledger:
        The folder of `vpeft bench --out` whose results `good on` reads; by default the package's own results.
    json:
        Print JSON instead of a table.
    """
    chosen = {name: get(name)} if name is not None else all_methods()
    if like is not None:
        _print_like(list(chosen), where, like, ledger, json)
        return
    described = [describe_method(kind) for kind in chosen.values()]
    if where is not None or json:
        described = with_properties(described, where)
    if json and name is not None:
        described = [{**one, **_family_of(one["name"])} for one in described]
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
    _print_family(only["name"])


def _print_like(names: list[str], where: str | None, like: str, ledger: Path | None, json: bool) -> None:
    """Answer a query of `--like`, among the methods that pass `--where`."""
    from vpeft.cli.method_answer import as_data, print_answer, results_of
    from vpeft.taxonomy.wishes import Query

    found = [one for name in names if (one := _properties(name)) is not None]
    known = found if len(names) > 1 else [one for name in all_methods() if (one := _properties(name)) is not None]
    results = results_of(ledger)
    query = Query(like, known, results)
    if where is not None:
        from vpeft.taxonomy.where import Filter

        passes = Filter(where, asdict(known[0]))
        found = [one for one in found if passes(asdict(one))]
    answer = query(found)
    if json:
        show.as_json(as_data(answer))
    else:
        print_answer(query, answer, len(names), results.source or "no results are at hand")


def _family_of(name: str) -> dict[str, Any]:
    """A method's title, what it builds on, what builds on it, and the methods near it."""
    from vpeft.cli.method_answer import lineage, near
    from vpeft.taxonomy.facts import facts_of

    one = _properties(name)
    nearby = [] if one is None else [asdict(neighbour) for neighbour in near(one)]
    return {"title": facts_of(name).title, **lineage(name), "near": nearby}


def _print_family(name: str) -> None:
    """The same as `_family_of`, for people."""
    out, family = show.console(), _family_of(name)
    out.print()
    if family["title"]:
        out.print(Text(f"Paper: {family['title']}"))
    for key, words in (("builds_on", "Builds on"), ("built_on_it", "Built on it")):
        if family[key]:
            out.print(Text(f"{words}: {', '.join(family[key])}"))
    if family["near"]:
        out.print(Text("\nNear it, by the pattern of the edits:\n"))
        rows = [(one["method"], f"{one['likeness']:.2f}", one["difference"]) for one in family["near"]]
        out.print(show.table(("method", "likeness", "what differs"), rows))


def _properties(name: str) -> Properties | None:
    """The properties of a method with default settings; None where it runs on none of the backbones tried."""
    from vpeft.taxonomy.properties import default_properties

    try:
        return default_properties(name)
    except VpeftError:  # no place for it, or a setting without a default
        return None


def with_properties(described: list[dict[str, Any]], where: str | None) -> list[dict[str, Any]]:
    """Return the methods that pass the filter, with their properties (None if a method does not run)."""
    from vpeft.taxonomy.properties import default_properties
    from vpeft.taxonomy.where import Filter

    full = []
    for one in described:
        found = _properties(one["name"])
        full.append({**one, "properties": None if found is None else asdict(found)})
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
