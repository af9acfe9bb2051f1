"""`vpeft explain METHOD --backbone B`: a method on a backbone, made without weights or memory for them.

Formula, settings' plan, properties, recipe, traps and published figures: what the method's page has, for any backbone.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Annotated, Any

import torch
from cyclopts import Parameter, validators
from rich.text import Text

from vpeft.backbones.create import create_backbone
from vpeft.backbones.own_model import anatomy_from
from vpeft.cli import show
from vpeft.cli.about import property_rows, published_figures
from vpeft.cli.flags import Switch, with_flags
from vpeft.cli.method_flags import all_method_flags, chosen_fields
from vpeft.injection.tune import tune
from vpeft.methods import get
from vpeft.methods.method import Method
from vpeft.taxonomy.facts import facts_of
from vpeft.taxonomy.properties import default_memory, properties_of
from vpeft.training.memory_plan import plan_memory


def _explain(
    method: str,
    /,
    *,
    backbone: Annotated[str, Parameter(alias="-b")] = "pocket_vit",
    anatomy: str | None = None,
    classes: int = 1000,
    batch: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    json: Switch = False,
    given: dict[str, Any],
) -> None:
    """Show what a method does to a backbone: formula, plan, properties, recipe, traps and published figures.

    Nothing is loaded: the model is made without weights. What is kept for backward is measured for this backbone and
    these settings.

    Parameters
    ----------
    method:
        A name from `vpeft methods`.
    backbone:
        A name from `vpeft backbones`, hf:ID, or py:FILE.py:NAME for code of yours.
    anatomy:
        For a model that no family knows: a TOML file of its nouns (docs/own_model.md), or `generic`.
    classes:
        Number of classes of the head.
    batch:
        Also say what memory a training step on so many images needs.
    json:
        Print JSON instead of a table.
    """
    kind = get(method)
    fields = chosen_fields(method, given)
    configured = kind(**fields)
    nouns = None if anatomy is None else anatomy_from(anatomy)
    with torch.device("meta"):
        made = create_backbone(backbone, pretrained=False, described=nouns is None)
        tuned = tune(made, configured, num_classes=classes, anatomy=nouns, verify=False, show=False)
    plan = tuned.plan()
    known = None if fields or nouns is not None else default_memory(method, backbone)
    one = properties_of(configured, memory=known, tuned=tuned, backbone=backbone)
    facts, figures = facts_of(method), published_figures(method)
    memory = None if batch is None else plan_memory(tuned, batch)
    if json:
        show.as_json(
            {
                "method": {"name": method, **configured.model_dump(mode="json")},
                **plan.as_dict(),
                "properties": asdict(one),
                "recipe": facts.recipe,
                "traps": facts.traps,
                "published": figures,
                **({} if memory is None else {"memory": {**memory.model_dump(), "total": memory.total}}),
            }
        )
        return
    out = show.console()
    out.print(Text(f"{method} ({kind.__name__}), {_published(kind)}\n\n{inspect.getdoc(kind)}\n"))
    out.print(plan)
    out.print(Text())
    out.print(show.table(("property", "value"), property_rows(one, plan, classes)))
    if memory is not None:
        out.print(Text(f"\n{memory.sentence()}"))
    out.print(Text("\n".join(["\nRecipe", facts.recipe or "None is recorded."])))
    out.print(Text("\n".join(["\nTraps", *(f"- {trap}" for trap in facts.traps or ("None is recorded.",))])))
    out.print(Text("\nPublished figures (not measured here)"))
    for figure in figures:
        parameters = f" ({figure['parameters']} parameters)" if figure["parameters"] else ""
        out.print(Text(f"- {figure['figure']}{parameters}\n    from {figure['source']}"))
        if figure["protocol"]:
            out.print(Text(f"    protocol: {figure['protocol']}"))
    doubts = "What is doubtful about the tables is in --json." if figures else "None that could be read at its source."
    out.print(Text(doubts))


def _published(kind: type[Method]) -> str:
    if not kind.year:
        return "no paper of its own"
    return f"{kind.venue} {kind.year}, {kind.paper}"


explain = with_flags(_explain, all_method_flags())
explain.__name__ = "explain"
