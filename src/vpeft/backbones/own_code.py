"""A backbone from code of the user's own: `py:` and a function or class that makes it, in a file or in a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import VpeftError, nearest

OWN_CODE = "py:"


class BadOwnCode(VpeftError):
    """Code that was named as a backbone does not make a model."""


def create_from_own_code(where: str) -> nn.Module:
    """Call what `where` names, without arguments, and return the model that it gives, in evaluation mode.

    Args:
        where: FILE.py:NAME or package.module:NAME; NAME is a function or class.

    Raises:
        BadOwnCode: there is no such file, module or name, or it gives no model; errors inside the code are as they are.
    """
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise BadOwnCode(
            f"{OWN_CODE}{where} does not say what makes the model. Say {OWN_CODE}FILE.py:NAME or"
            f" {OWN_CODE}package.module:NAME, where NAME is a function or class that takes no arguments."
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    make = getattr(module, name, None)
    if not callable(make):
        made = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadOwnCode(f"{place} has no function or class {name!r}. {nearest(name, made)}")
    model: Any = make()
    if not isinstance(model, nn.Module):
        raise BadOwnCode(f"{name}() of {place} gives a {type(model).__name__}, not a torch.nn.Module.")
    return model.eval()


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadOwnCode(f"There is no file {str(path)!r}.")
    name = f"vpeft_own_{path.stem}"  # under a name of its own, so that it hides no package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "."):
            raise  # the module is there, but lacks something that it imports
        raise BadOwnCode(
            f"There is no module {name!r}: {error}. A file is named with its ending: {OWN_CODE}FILE.py:NAME."
        ) from None
