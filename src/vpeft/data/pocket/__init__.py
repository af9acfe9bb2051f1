"""The offline suite: nine 64x64 tasks that are drawn by code or cut from pictures inside Python packages.

    images, labels = pocket_tasks()["count"].load("train")

A file of this folder that has a `TASK` is a task; nothing else needs to know it. `python -m vpeft.data.pocket` makes
the suite anew, prints what it checks, and with `--store` writes the digests of a new or changed task.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache

from vpeft.data.pocket.task import SEED, SIZES, VERSION, PocketTask, digest

__all__ = ["SEED", "SIZES", "TIERS", "VERSION", "PocketTask", "Tier", "digest", "pocket_tasks"]


@dataclass(frozen=True)
class Tier:
    """How much of the suite is run: which tasks, for how long, how often, and which learning rates are tried."""

    tasks: tuple[str, ...] | None  # None: all
    epochs: int
    seeds: int
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]


TIERS: dict[str, Tier] = {
    "smoke": Tier(("handwriting", "orientation"), epochs=3, seeds=1, learning_rates=(2e-3,), weight_decays=(1e-4,)),
    "quick": Tier(None, epochs=6, seeds=1, learning_rates=(2e-3,), weight_decays=(1e-4,)),
    "demo": Tier(("orientation",), epochs=8, seeds=1, learning_rates=(2e-3,), weight_decays=(1e-4,)),
    "full": Tier(None, epochs=10, seeds=3, learning_rates=(1e-3, 4e-3, 1.6e-2), weight_decays=(1e-4,)),
}


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
