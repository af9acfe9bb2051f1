"""What can be learnt, one file for each task; `vpeft.tasks.Regression` and the like are found by class name."""

from __future__ import annotations

from vpeft.task import Task, all_tasks, get_task

__all__ = ["Task", "all_tasks", "get_task"]


def __getattr__(name: str) -> type[Task]:
    if name.startswith("_") or not name[0].isupper():
        raise AttributeError(name)
    by_class = {kind.__name__: kind for kind in all_tasks().values()}
    if name not in by_class:
        from vpeft.errors import nearest

        raise AttributeError(f"vpeft.tasks has no {name!r}. {nearest(name, by_class)}")
    return by_class[name]


def __dir__() -> list[str]:
    return sorted([*__all__, *(kind.__name__ for kind in all_tasks().values())])
