"""`vpeft explain METHOD --backbone B`: describe a method on a backbone, without weights.

It prints the contents of the method's page for any backbone: formula, plan, properties, recipe, traps, figures.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
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
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import Method
from vpeft.methods import get
from vpeft.taxonomy.facts import facts_of
from vpeft.taxonomy.properties import default_memory, properties_of
from vpeft.training.fit_memory import AGAIN, LOW_MEMORY, Choice, divisible, fitting
from vpeft.training.memory_plan import MemoryPlan, plan_memory
from vpeft.training.optimisation import Optimisation, Precision
from vpeft.training.sizes import bytes_of, readable


def _explain(
    method: str,
    /,
    *,
    backbone: Annotated[str, Parameter(alias="-b")] = "pocket_vit",
    anatomy: str | None = None,
    classes: int = 1000,
    batch: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    precision: Precision = "fp32",
    fit_memory: str | None = None,
    json: Switch = False,
    given: dict[str, Any],
) -> None:
    """Show what a method does to a backbone: formula, plan, properties, recipe, traps and published figures.

    The model is created without weights. The bytes saved for the backward pass are measured for this backbone and these
    settings.

    Parameters
    ----------
    method:
        A name from `vpeft methods`.
    backbone:
        A name from `vpeft backbones`, hf:ID, or py:FILE.py:NAME for your own code.
    anatomy:
        For a model that no family knows: a TOML file that names its parts (docs/own_model.md), or `generic`.
    classes:
        Number of classes of the head.
    batch:
        Also print the memory of a training step on this many images, with and without accelerations.
    precision:
        Precision of the training step.
    fit_memory:
        Also print how a step stays within this much memory, such as 8GB.
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
    needs = None
    if batch is not None or fit_memory is not None:
        needs = _needs(tuned, batch or Optimisation().batch, precision, fit_memory)
    if json:
        show.as_json(
            {
                "method": {"name": method, **configured.model_dump(mode="json")},
                **plan.as_dict(),
                "properties": asdict(one),
                "recipe": facts.recipe,
                "traps": facts.traps,
                "published": figures,
                **({} if needs is None else {"memory": needs.as_dict()}),
            }
        )
        return
    out = show.console()
    out.print(Text(f"{method} ({kind.__name__}), {_published(kind)}\n\n{inspect.getdoc(kind)}\n"))
    out.print(plan)
    out.print(Text())
    out.print(show.table(("property", "value"), property_rows(one, plan, classes)))
    if needs is not None:
        out.print(Text("\n" + "\n".join(needs.lines())))
    out.print(Text("\n".join(["\nRecipe", facts.recipe or "None is recorded."])))
    out.print(Text("\n".join(["\nTraps", *(f"- {trap}" for trap in facts.traps or ("None is recorded.",))])))
    out.print(Text("\nPublished figures (not measured here)"))
    for figure in figures:
        parameters = f" ({figure['parameters']} parameters)" if figure["parameters"] else ""
        out.print(Text(f"- {figure['figure']}{parameters}\n    from {figure['source']}"))
        if figure["protocol"]:
            out.print(Text(f"    protocol: {figure['protocol']}"))
    doubts = "--json lists the doubts about the tables." if figures else "None that could be read at its source."
    out.print(Text(doubts))


@dataclass(frozen=True)
class _Needs:
    """The memory of a step with and without accelerations, and how it stays within a limit."""

    plain: MemoryPlan
    others: dict[str, MemoryPlan]
    limit: int | None
    choice: Choice | None

    def lines(self) -> list[str]:
        found = [self.plain.sentence()]
        found += [f"  with --acceleration {name}: {readable(plan.total)}" for name, plan in self.others.items()]
        return found if self.choice is None or self.limit is None else [*found, *self.choice.lines(self.limit)]

    def as_dict(self) -> dict[str, Any]:
        def told(plan: MemoryPlan) -> dict[str, Any]:
            return {**plan.model_dump(), "total": plan.total}

        found = {**told(self.plain), "with": {name: told(plan) for name, plan in self.others.items()}}
        if self.choice is not None:
            way = self.choice.way
            found["fits"] = {"acceleration": way.acceleration, "accumulate": way.parts, **told(way.plan)}
        return found


def _needs(tuned: TunedModel, batch: int, precision: Precision, fit_memory: str | None) -> _Needs:
    plans: dict[str, MemoryPlan] = {}

    def plan(acceleration: str) -> MemoryPlan:
        if acceleration not in plans:
            plans[acceleration] = plan_memory(tuned, batch, precision=precision, acceleration=acceleration)
        return plans[acceleration]

    limit = None if fit_memory is None else bytes_of(fit_memory)
    others = {name: plan(name) for name in ("auto", f"auto,{LOW_MEMORY}", f"auto,{LOW_MEMORY},{AGAIN}")}
    choice = None
    if limit is not None:
        tuned.train()
        choice = fitting(limit, batch, "auto", 1, plan, least=1 if divisible(tuned) else None)
        tuned.eval()
    return _Needs(plan("off"), others, limit, choice)


def _published(kind: type[Method]) -> str:
    if not kind.year:
        return "no paper of its own"
    return f"{kind.venue} {kind.year}, {kind.paper}"


explain = with_flags(_explain, all_method_flags())
explain.__name__ = "explain"
