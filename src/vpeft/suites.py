"""The benchmark's suites by name: `vpeft.suites.pocket()` is a `Suite` with its tasks, groups and tiers.

```python
suite = vpeft.suites.pocket()
task = suite.task("count")                      # task.train.pixels: uint8 (800, 64, 64, 3); task.train.labels: (800,)
```

`vpeft.bench.run_bench(BenchConfig(suite="pocket", methods=("linear_probe", "lora")))` runs methods on its tasks.
The test split stays sealed: only the benchmark's final evaluator reads it.
"""

from __future__ import annotations

from collections.abc import Callable

from vpeft.bench.suite import Suite
from vpeft.bench.suites import suite, suites

__all__ = ["names"]


def names() -> list[str]:
    """The names of all suites."""
    return sorted(suites())


def __getattr__(name: str) -> Callable[[], Suite]:
    if name.startswith("_"):
        raise AttributeError(name)
    # "pocket-dense" is no name in Python; `pocket_dense` is.
    found = suites().get(name.replace("_", "-")) or suite(name)
    return lambda: found


def __dir__() -> list[str]:
    return [*__all__, *names(), *(name.replace("-", "_") for name in names() if "-" in name)]
