"""Settings: pydantic models that a user fills in, whose mistakes are sentences."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from .errors import VpeftError
from .registry import wrong_options


class BadSettings(VpeftError, ValueError):
    """A setting does not exist, or has a value that it cannot have."""


class Settings(BaseModel):
    """A model whose constructor raises `BadSettings`.

    Inside another model, and in `model_validate`, mistakes stay a `ValidationError`, whose places readers of files and
    flags word themselves.
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            kind = type(self)
            raise BadSettings(wrong_options(kind.__name__, kind.__name__, kind.model_fields, error)) from None

    # pydantic would call a constructor of our own for nested values too, and lose the places of their mistakes
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
