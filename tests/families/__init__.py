"""Tiny models of every family, one file for each library or kind: `MODELS` maps a name to a function that makes one.

A file here is found by itself. The functions take no argument, download nothing and give a model with random weights
that no bias or scale leaves at zero or one (`tests.models.roughen`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from torch import nn

from tests.models import FAMILIES


def every_family() -> dict[str, Callable[[], nn.Module]]:
    """The three families that every test uses, and all that the files of this folder add."""
    found = dict(FAMILIES)
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        models = importlib.import_module(f"{__name__}.{entry.name}").MODELS
        twice = set(found) & set(models)
        if twice:
            raise ValueError(f"tests/families/{entry.name}.py repeats {', '.join(sorted(twice))}")
        found |= models
    return found


EVERY = every_family()
