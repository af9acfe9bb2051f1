"""The stored table of refusals: which method, task and head each family refuses, and for want of which place.

`refusals.json` is written by `python -m tests.contract.matrix --refusals`. The contract tests compare each cell that
they attach with it: a method that begins to refuse a backbone fails them, and so does one that no longer does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).with_name("refusals.json")
UPDATE = "python -m tests.contract.matrix --refusals"
# methods on families; the heads of tasks on families; kinds of heads on families; "METHOD for TASK" on three families
Part = Literal["methods", "tasks", "heads", "methods for tasks"]
Table = dict[str, dict[str, dict[str, str]]]

# What a sentence names: words in quotes, places inside the model (blocks.0.norm1), places of the whole model, and the
# verb that a place does not offer.
NAMED = re.compile(
    r"'([\w.]+)'"
    r"|\b((?:blocks|stages)\.\d+(?:\.[a-z]\w*)*)"
    r"|\b(pixels|patch|embedding|trunk|norm|outlet|logits|query)\b"
    r"|\bcannot (\w+)"
)


def kind_of(error: Exception) -> str:
    """The class of a refusal and the places and verbs that its first sentence names, sorted: independent of wording.

    What the sentence lists as existing (after a semicolon) is left out, unless nothing is named before.
    """
    sentence = re.split(r"\.(?:\s|$)", str(error))[0]
    for clause in (sentence.split(";")[0], sentence):
        named = {next(filter(None, groups)) for groups in NAMED.findall(clause)}
        if named:
            return f"{type(error).__name__}: {', '.join(sorted(named))}"
    return type(error).__name__


@cache
def stored() -> Table:
    """The table: part -> method, task or head -> family -> kind of the refusal. A cell that is not there attaches."""
    table: Table = json.loads(TABLE.read_text())
    return table


def refuses(name: str, family: str) -> bool:
    """Whether a family refuses a method, says the table."""
    return family in stored().get("methods", {}).get(name, {})


def difference(part: Part, name: str, family: str, kind: str | None, table: Table | None = None) -> str | None:
    """How one cell differs from the table, as a sentence that says how to update it; None where it agrees.

    Args:
        kind: of its refusal; None where it attaches.
        table: in place of the stored one.
    """
    was = (stored() if table is None else table).get(part, {}).get(name, {}).get(family)
    if kind == was:
        return None
    now = "attaches" if kind is None else f"refuses ({kind})"
    before = "attached" if was is None else f"refused ({was})"
    return f"{name} on {family} {before}, says {TABLE.name}, and now {now}. If that is meant: {UPDATE}"


def stale(part: Part, names: Collection[str], families: Collection[str]) -> list[str]:
    """Cells of a part of the table whose method (task, head) or family is not among those given."""
    cells = [(name, family) for name, row in stored().get(part, {}).items() for family in row]
    return [f"{name} on {family}" for name, family in cells if name not in names or family not in families]


def write(cells: Mapping[tuple[Part, str, str], str]) -> None:
    """Write the table anew: every refused cell on a line of its own, sorted."""
    table: Table = {}
    for (part, name, family), kind in sorted(cells.items()):
        table.setdefault(part, {}).setdefault(name, {})[family] = kind
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    stored.cache_clear()
