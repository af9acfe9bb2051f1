"""Contenders: what a benchmark compares. One method, or several attached together, with the fields that were asked for.

In text: `lora`, `lora(rank=4)`, `lora(rank=4, targets=["q", "v"])+ssf`. Values are written as in TOML; a bare word is a
string.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from vpeft.bench.key import MethodSpec
from vpeft.errors import VpeftError

_FORM = re.compile(r"\s*(?P<name>[A-Za-z_][\w-]*)\s*(?:\((?P<fields>.*)\))?\s*", re.DOTALL)


class BadContender(VpeftError):
    """A text that does not name methods and their fields."""


@dataclass(frozen=True)
class Contender:
    """Methods attached together, and the label under which tables show them."""

    label: str
    methods: tuple[MethodSpec, ...]


def parse(text: str) -> Contender:
    """The contender that `text` describes. Raises BadContender; whether the methods exist is not looked at here."""
    specs = [_method(part, text) for part in _split(text, "+", text)]
    return Contender("+".join(_label(spec) for spec in specs), tuple(specs))


def parse_all(texts: Sequence[str]) -> tuple[Contender, ...]:
    """Contenders from texts, each of which may list several with commas. Raises BadContender, also for a repeat."""
    found = [parse(part) for text in texts for part in _split(text, ",", text)]
    labels = [contender.label for contender in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise BadContender(
            f"Asked for more than once: {', '.join(twice)}. Name each contender once; use seeds to repeat it."
        )
    if not found:
        raise BadContender("No method was named. Give at least one, for instance: linear_probe,lora,ssf")
    return tuple(found)


def _method(part: str, text: str) -> MethodSpec:
    match = _FORM.fullmatch(part)
    if match is None:
        raise BadContender(f"{part.strip()!r} in {text!r} is not a method. Write name or name(field=value, ...).")
    fields: dict[str, object] = {}
    for item in _split(match["fields"] or "", ",", text):
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier() or not value.strip():
            raise BadContender(f"{item.strip()!r} in {text!r} is not a field. Write field=value.")
        if name.strip() in fields:
            raise BadContender(f"The field {name.strip()!r} is given twice in {text!r}.")
        fields[name.strip()] = _value(value.strip(), text)
    return MethodSpec(name=match["name"].replace("-", "_").lower(), fields=fields)


def _value(text: str, whole: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z_][\w.-]*", text):
            return {"True": True, "False": False}.get(text, text)
        raise BadContender(
            f'{text!r} in {whole!r} is not a value. Write it as in TOML, for instance 4, 0.1 or "q".'
        ) from None


def _split(text: str, mark: str, whole: str) -> list[str]:
    """`text` at each `mark` outside brackets and quotes, without empty pieces."""
    pieces, depth, quote, start = [], 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == mark and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    if depth or quote:
        raise BadContender(f"A bracket or quote is not closed in {whole!r}.")
    return [piece for piece in (*pieces, text[start:]) if piece.strip()]


def _label(spec: MethodSpec) -> str:
    fields = ", ".join(f"{name}={_shown(value)}" for name, value in sorted(spec.fields.items()))
    return f"{spec.name}({fields})" if fields else spec.name


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return str(value)
