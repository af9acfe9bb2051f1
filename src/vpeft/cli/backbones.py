"""`vpeft backbones`: the families that vpeft describes, and the models of each in timm."""

from __future__ import annotations

from typing import Any

import timm
from rich.text import Text

from vpeft.backbones import pocket_vit
from vpeft.backbones.describe import Family, families
from vpeft.cli import show
from vpeft.cli.flags import Switch


def backbones(pattern: str | None = None, /, *, weights: Switch = False, json: Switch = False) -> None:
    """List the backbones that can be adapted; with PATTERN, the models whose names match it.

    Parameters
    ----------
    pattern:
        Part of a model name, or a pattern such as `vit_small*`.
    weights:
        List names with the tag of their pre-trained weights (`vit_base_patch16_224.augreg_in21k`).
    json:
        Print JSON instead of a table.
    """
    listed = {entry.name: model_names(entry, pattern, weights) for entry in families().values()}
    if json:
        show.as_json(
            [
                {"family": entry.name, "summary": entry.summary, "models": listed[entry.name]}
                for entry in families().values()
            ]
        )
        return
    out = show.console()
    if pattern is None and not weights:
        rows = [
            (entry.name, len(listed[entry.name]), entry.summary, ", ".join(listed[entry.name][:3]))
            for entry in families().values()
        ]
        out.print(show.table(("family", "models", "what it covers", "for example"), rows))
        out.print(Text(f"\nShipped with vpeft, with weights: {', '.join(shipped_names())}."))
        out.print(Text("`vpeft backbones vit_small` lists names; with --weights, those of pre-trained weights."))
        return
    rows_of_names: list[tuple[Any, ...]] = [(name, family) for family, names in listed.items() for name in names]
    out.print(show.table(("backbone", "family"), rows_of_names))


def model_names(entry: Family, pattern: str | None = None, weights: Switch = False) -> list[str]:
    """Return the names under which timm makes models of a family: those that its own modules define."""
    wanted = "" if pattern is None else pattern if "*" in pattern else f"*{pattern}*"
    modules = sorted({dotted.split(".")[-2] for dotted in entry.classes})
    return [name for module in modules for name in timm.list_models(wanted, module=module, pretrained=weights)]


def shipped_names() -> list[str]:
    """Return the models whose weights ship with vpeft."""
    return list(timm.list_models(module=pocket_vit.__name__.rpartition(".")[2]))
