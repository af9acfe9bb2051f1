"""The suites: one file each, found by itself. A file states `SUITE: Suite`; its name is not used."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from vpeft.bench.suite import BenchTask, DataFolder, Suite, UnknownSuite
from vpeft.errors import nearest


@lru_cache(maxsize=1)
def suites() -> dict[str, Suite]:
    """All suites by name. Opens no data."""
    found: dict[str, Suite] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        suite = importlib.import_module(f"{__name__}.{module.name}").SUITE
        if not isinstance(suite, Suite):
            raise TypeError(f"{__name__}.{module.name}.SUITE is a {type(suite).__name__}, not a Suite")
        if suite.name in found:
            raise ValueError(f"two suites are named {suite.name!r}")
        found[suite.name] = suite
    return found


def suite(name: str) -> Suite:
    """The suite of this name. Raises UnknownSuite."""
    try:
        return suites()[name]
    except KeyError:
        raise UnknownSuite(f"There is no suite {name!r}. {nearest(name, suites())}") from None


@lru_cache(maxsize=2)
def open_task(suite_name: str, task: str, data: DataFolder | None = None) -> BenchTask:
    """A task with its data; the last two stay in memory, since runs of one task follow each other.

    Args:
        suite_name, task: their names.
        data: where the files are, of suites that read the user's.
    """
    return suite(suite_name).task(task, data)
