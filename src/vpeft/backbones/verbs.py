"""What can be done at a place: the verbs, and how long inserted tokens live."""

from __future__ import annotations

from typing import Literal

Verb = Literal[
    "before", "after", "parallel", "wrap", "replace", "insert_tokens", "tap", "reparametrize", "extend", "unfreeze"
]
VERBS: tuple[Verb, ...] = (
    "before",
    "after",
    "parallel",
    "wrap",
    "replace",
    "insert_tokens",
    "tap",
    "reparametrize",
    "extend",
    "unfreeze",
)
Lifetime = Literal["span", "pooled"]
