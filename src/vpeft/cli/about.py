"""Information on a method besides its plan: its properties in words, and published figures with their sources.

`vpeft explain` prints it and `tools/method_pages.py` writes it.
"""

from __future__ import annotations

from typing import Any

from vpeft.cli import show
from vpeft.injection.plan import Plan
from vpeft.report.published import figures_of
from vpeft.taxonomy.facts import facts_of
from vpeft.taxonomy.properties import BATCH, Properties


def property_rows(one: Properties, plan: Plan, classes: int) -> list[tuple[str, str]]:
    """Return each property of a method on a backbone as (name, value)."""
    reasons = sorted({row.unmergeable for row in plan.rows if row.unmergeable})
    return [
        ("trained parameters, without the head", f"{plan.trainable:,} ({plan.share:.3%} of the backbone's)"),
        (f"adapter's tensors on disk, with a head of {classes} classes", f"{plan.bytes_on_disk / 1e6:.2f} MB"),
        ("kept for backward, relative to full fine-tuning", f"{one.memory:.3f} (batch {BATCH}, float32)"),
        ("gradients reach", one.reach),
        ("merges into the weights", "yes" if one.mergeable else f"no: {'; '.join(reasons)}"),
        ("further work at inference", yes(one.latency)),
        ("adds modules", yes(one.adds_modules)),
        ("keeps the way through the blocks as it is", yes(one.keeps_structure)),
        ("starts as the frozen backbone", yes(one.identity)),
    ]


def published_figures(method: str) -> list[dict[str, Any]]:
    """Return the published figures of a method: figure, parameters, source, protocol and caveats.

    Figures of tables come first. vpeft measured none of them.
    """
    tables = [
        {
            "figure": f"{one.table}: {', '.join(f'{task} {100 * score:.2f}' for task, score in one.scores.items())}",
            "parameters": "" if one.parameters is None else show.count(one.parameters),
            "source": one.source,
            "protocol": one.protocol,
            "caveats": list(one.caveats),
        }
        for one in figures_of(method)
    ]
    single = [
        {"figure": one.figure, "parameters": "", "source": one.source, "protocol": "", "caveats": []}
        for one in facts_of(method).published
    ]
    return tables + single


def yes(answer: bool) -> str:
    """Return "yes" or "no"."""
    return "yes" if answer else "no"
