"""Write a nested mapping as a TOML document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w


def toml_text(values: Mapping[str, Any]) -> str:
    """Return `values` as a TOML document, without entries that are None, which TOML cannot express.

    Raises:
        TypeError: TOML cannot express a value.
    """
    return tomli_w.dumps(_without_none(values))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
