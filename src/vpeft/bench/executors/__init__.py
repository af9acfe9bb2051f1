"""Who carries out the jobs of a benchmark. One file for each kind of executor, found by itself.

A further executor (a cluster, say) is one more file here: a class with the members of `Executor`, entered under a name
with `@register_executor`. `vpeft bench --executor NAME` then uses it.
"""

from __future__ import annotations

import importlib
import pkgutil

from vpeft.bench.executors.executor import (
    Executor,
    ExecutorClass,
    ExecutorSettings,
    UnknownExecutor,
    registered,
)
from vpeft.errors import nearest

AUTO = "auto"

__all__ = ["AUTO", "Executor", "ExecutorSettings", "UnknownExecutor", "executor_class", "executors"]


def executors() -> dict[str, ExecutorClass]:
    """All kinds of executors by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return registered()


def executor_class(name: str, workers: int) -> ExecutorClass:
    """The kind of this name; "auto" is serial for one worker and processes for several. Raises UnknownExecutor."""
    if name == AUTO:
        name = "serial" if workers == 1 else "processes"
    known = executors()
    if name not in known:
        raise UnknownExecutor(f"There is no executor {name!r}. {nearest(name, [AUTO, *known])}")
    return known[name]
