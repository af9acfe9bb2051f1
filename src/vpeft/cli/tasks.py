"""`vpeft tasks`: list the tasks of vpeft/tasks and the heads of vpeft/heads."""

from __future__ import annotations

import inspect
from typing import Any

from rich.text import Text

from vpeft.cli import show
from vpeft.cli.flags import Switch, shown_default
from vpeft.cli.methods import type_name
from vpeft.head import Head, all_heads
from vpeft.task import Task, all_tasks, get_task


def tasks(name: str | None = None, /, *, json: Switch = False) -> None:
    """List the tasks and the heads; with NAME, all options of one task.

    Parameters
    ----------
    name:
        One task, for all its options: `--task "NAME(option=value)"`.
    json:
        Print JSON instead of a table.
    """
    chosen = {name: get_task(name)} if name is not None else all_tasks()
    if json:
        found: dict[str, Any] = {"tasks": [describe_task(kind) for kind in chosen.values()]}
        if name is None:
            found["heads"] = [describe_head(kind) for kind in all_heads().values()]
        show.as_json(found)
        return
    out = show.console()
    if name is None:
        rows = [(one.name, one.target_kind, _summary(one)) for one in chosen.values()]
        out.print(show.table(("task", "target", "what is learnt"), rows))
        out.print(Text())
        heads = [(kind, ", ".join(describe_head(one)["options"]), _summary(one)) for kind, one in all_heads().items()]
        out.print(show.table(("head", "options", "what it is"), heads))
        out.print(Text("\n`vpeft tasks NAME` lists the options of a task."))
        return
    kind = chosen[name]
    out.print(Text(f"{kind.name}: {inspect.getdoc(kind)}\n"))
    options = [
        (key, type_name(field.annotation), shown_default(field) or "", field.description or "")
        for key, field in kind.options().items()
    ]
    out.print(show.table(("option", "type", "default", "meaning"), options))


def describe_task(kind: type[Task]) -> dict[str, Any]:
    """Return the contents of lists for a task."""
    return {
        "name": kind.name,
        "target": kind.target_kind,
        "summary": _summary(kind),
        "doc": inspect.getdoc(kind) or "",
        "options": {
            key: {"type": type_name(field.annotation), "default": field.get_default(call_default_factory=True)}
            for key, field in kind.options().items()
        },
    }


def describe_head(kind: type[Head]) -> dict[str, Any]:
    """Return the contents of lists for a head, without the widths that the backbone and the task decide."""
    return {"name": kind.kind, "summary": _summary(kind), "options": list(kind.options)}


def _summary(kind: type[object]) -> str:
    return (inspect.getdoc(kind) or "").split("\n")[0]
