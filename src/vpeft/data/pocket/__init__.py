"""The offline suite: nine 64x64 tasks that are drawn by code or cut from pictures inside Python packages.

    images, labels = pocket_tasks()["count"].load("train")

A file of this folder that has a `TASK` is a task; nothing else needs to know it. `python -m vpeft.data.pocket` makes
the suite anew, prints what it checks, and with `--store` writes the digests of a new or changed task.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from vpeft.data.pocket.task import SEED, SIZES, VERSION, PocketTask, digest

__all__ = ["SEED", "SIZES", "VERSION", "PocketTask", "digest", "pocket_tasks"]


@cache
def pocket_tasks() -> dict[str, PocketTask]:
    """Every task of the suite by name, ordered natural, specialised, structured, then by name."""
    found: list[PocketTask] = []
    for entry in pkgutil.iter_modules(__path__):
        if entry.name == "__main__":
            continue
        task = getattr(importlib.import_module(f"{__name__}.{entry.name}"), "TASK", None)
        if isinstance(task, PocketTask):
            found.append(task)
    return {task.name: task for task in sorted(found, key=lambda task: (task.group, task.name))}
