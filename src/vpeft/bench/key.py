"""What makes a run that run and no other, and the key made of it.

Two runs with the same key would give the same numbers, so the second is never made; whatever would change a number is
part of the identity: the task and its data, the protocol, the method with all its fields, the backbone and its weights,
the optimisation, the seed and the numerics. What does not change a number (the machine, the date, the number of
workers) belongs to the record, not to the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vpeft.errors import VpeftError
from vpeft.method_spec import MethodSpec

# Raised when the meaning of an identity changes; old records keep their keys and are simply not found again.
SCHEMA = 1
# 80 bits: among a million runs a collision has odds of one in a trillion, and a file name stays readable.
KEY_LENGTH = 20


class NotHashable(VpeftError):
    """A value in a run's identity has no canonical form."""


def canonical(value: object) -> str:
    """The one JSON text of `value`: keys sorted, no spaces, 1.0 written as 1, no NaN.

    Raises NotHashable for anything that is not made of mappings, sequences, strings, numbers, booleans and None.
    """
    return json.dumps(_plain(value, "identity"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object, length: int = 64) -> str:
    """The first `length` hex digits of the sha256 of the canonical text of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def _plain(value: object, where: str) -> object:
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise NotHashable(f"{where} is {value}; a run's identity needs finite numbers.")
        # A learning rate given as 1 and one given as 1.0 are one learning rate.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise NotHashable(f"{where} has keys that are not strings: {list(value)}.")
        return {str(name): _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, where) for item in value), key=canonical)
    raise NotHashable(
        f"{where} is a {type(value).__name__}, which has no canonical text. Use numbers, strings, lists or mappings."
    )


class Numerics(BaseModel):
    """What decides how numbers are rounded: a CPU and a GPU, or fp32 and bf16, do not give the same run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "cpu"
    precision: str = "fp32"


class Identity(BaseModel):
    """Everything that a run's numbers depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: Literal["final", "search"]
    task: str
    data: str
    protocol: str
    methods: tuple[MethodSpec, ...]
    backbone: str
    weights: str
    optimisation: dict[str, Any]
    seed: int
    numerics: Numerics = Numerics()

    def key(self) -> str:
        """The run key: 20 hex digits of the sha256 of the identity's canonical text."""
        return digest({"schema": SCHEMA, **self.model_dump(mode="json")}, KEY_LENGTH)
