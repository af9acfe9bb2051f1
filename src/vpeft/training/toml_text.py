"""A nested mapping as a TOML document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w


def toml_text(values: Mapping[str, Any]) -> str:
    """`values` as a TOML document; None is left out, since TOML has no such thing.

    Raises:
        TypeError: a value that TOML has no form for.
    """
    return tomli_w.dumps(_without_none(values))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
