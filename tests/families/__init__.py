"""Tiny models of every family, one file for each library or kind: `MODELS` maps a name to a function that makes one.

A file here is found by itself. The functions take no argument, download nothing and give a model with random weights
that no bias or scale leaves at zero or one (`tests.models.roughen`). `VARIANTS`, in the same form, are other settings
of the same classes, for the tests of places alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from torch import nn

from tests.models import FAMILIES

Models = dict[str, Callable[[], nn.Module]]


def _collected(attribute: str, start: Models) -> Models:
    """`start` and what the files of this folder have under this name, each key once."""
    found = dict(start)
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        models = getattr(importlib.import_module(f"{__name__}.{entry.name}"), attribute, {})
        twice = set(found) & set(models)
        if twice:
            raise ValueError(f"tests/families/{entry.name}.py repeats {', '.join(sorted(twice))}")
        found |= models
    return found


# the three families that every test uses, and all that the files of this folder add
EVERY = _collected("MODELS", FAMILIES)
VARIANTS = _collected("VARIANTS", {})
