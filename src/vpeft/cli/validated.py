"""A pydantic model from typed values, with errors worded for the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vpeft.cli.flags import Flag, mistakes

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], values: Mapping[str, Any], flags: Iterable[Flag]) -> _Model:
    """Return `model` made from `values`; raises `InvalidValue` with the flag, the value and what is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise mistakes(error, flags) from None
