"""Who carries out the jobs of a benchmark. One file for each kind of executor, found by itself.

A further executor is one more file here: a class with the members of `Executor`, entered under a name
with `@register_executor`. `vpeft bench --executor NAME` then uses it.
"""

from __future__ import annotations

import importlib
import pkgutil

from vpeft.bench.executors.executor import (
    ClusterSettings,
    Executor,
    ExecutorClass,
    ExecutorSettings,
    UnknownExecutor,
    UnsuitableExecutor,
    registered,
)
from vpeft.errors import nearest

AUTO = "auto"

__all__ = ["AUTO", "ClusterSettings", "Executor", "ExecutorSettings", "UnknownExecutor", "executor_class", "executors"]


def executors() -> dict[str, ExecutorClass]:
    """All kinds of executors by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return registered()


def executor_class(name: str, workers: int | None, address: str | None = None) -> ExecutorClass:
    """The kind of this name; "auto" is ray with an address, processes for several workers, else serial.

    Raises:
        UnknownExecutor: there is none of this name.
        UnsuitableExecutor: it knows no address.
    """
    if name == AUTO:
        name = "ray" if address is not None else "serial" if workers in (None, 1) else "processes"
    known = executors()
    if name not in known:
        raise UnknownExecutor(f"There is no executor {name!r}. {nearest(name, [AUTO, *known])}")
    if address is not None and name in ("serial", "processes"):
        raise UnsuitableExecutor(f"The executor {name} works on this machine alone; --address is for ray.")
    return known[name]
