"""One grammar for everything that is written as a name with fields: methods, and in the same way heads or optimisers.

    lora
    lora(rank=4)
    lora(rank=4, targets=[q, v])+ssf          several methods, attached together
    mlp(hidden=512)                           a head
    sgd(momentum=0.9)                         an optimiser
    regression(head=mlp(hidden=512))          a task; the value in brackets is text, which the task reads
    image:lora(rank=4)+text:bitfit            methods on the towers of a host, by `parse_placed`; * is all together

Values are written as in TOML. A bare word, alone or in a list, is a string; `None` is nothing. This file only reads and
writes text: whether the name and the fields exist is checked by whoever looks them up.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from vpeft.errors import VpeftError
from vpeft.guarded import DEPTH, short

_FORM = re.compile(r"\s*(?P<name>[A-Za-z_][\w-]*)\s*(?:\((?P<fields>.*)\))?\s*", re.DOTALL)
_PLACED = re.compile(r"\s*(?P<tower>\*|[A-Za-z_][\w.-]*)\s*:(?P<rest>.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_WORDS = re.compile(rf"{_WORD.pattern}(?:\+{_WORD.pattern})*")  # such as flip+photometric
# Python's spelling of what TOML spells otherwise or cannot say.
_PYTHON = {"True": True, "False": False, "None": None}


class BadMethodSpec(VpeftError):
    """A text that does not name something and its fields."""


class MethodSpec(BaseModel):
    """A name and the fields that were given. `name` is in snake case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fields: dict[str, Any] = {}


@dataclass(frozen=True)
class MethodSet:
    """Methods that are attached together, and the label under which tables show them."""

    label: str
    methods: tuple[MethodSpec, ...]


def parse_one(text: str, what: str = "method") -> MethodSpec:
    """The name and the fields in `text`; error messages call it a `what`. Raises BadMethodSpec."""
    match = _FORM.fullmatch(text)
    if match is None:
        article = "an" if what[:1] in "aeiou" else "a"
        raise BadMethodSpec(f"{short(text.strip(), 99)} is not {article} {what}. Write name or name(field=value, ...).")
    fields: dict[str, object] = {}
    for item in _split(match["fields"] or "", ",", text):
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier() or not value.strip():
            raise BadMethodSpec(
                f"{short(item.strip())} in {short(text.strip(), 99)} is not a field. Write field=value."
            )
        if name.strip() in fields:
            raise BadMethodSpec(f"The field {short(name.strip())} is given twice in {short(text.strip(), 99)}.")
        fields[name.strip()] = _value(value.strip(), text)
    return MethodSpec(name=match["name"].replace("-", "_").lower(), fields=fields)


def parse(text: str) -> MethodSet:
    """The methods in `text`, joined by `+`. Raises BadMethodSpec."""
    specs = tuple(parse_one(part) for part in _split(text, "+", text))
    if not specs:
        raise BadMethodSpec("No method was named. Give at least one, for instance: lora or lora(rank=4)+ssf")
    return MethodSet(text_of(specs), specs)


def parse_placed(text: str) -> list[tuple[str, MethodSpec]]:
    """The methods in `text`, joined by `+`, each with the tower that it is put on: `text:lora(rank=4)`.

    The tower is empty where none is named, and `*` for all together. Raises BadMethodSpec.
    """
    found: list[tuple[str, MethodSpec]] = []
    for part in _split(text, "+", text):
        match = _PLACED.fullmatch(part)
        found.append(("", parse_one(part)) if match is None else (match["tower"], parse_one(match["rest"])))
    if not found:
        raise BadMethodSpec("No method was named. Give at least one, for instance: lora or lora(rank=4)+ssf")
    return found


def parse_all(texts: Sequence[str]) -> tuple[MethodSet, ...]:
    """Sets of methods from texts, each of which may list several with commas. Raises BadMethodSpec, for repeats too."""
    found = [parse(part) for text in texts for part in _split(text, ",", text)]
    labels = [methods.label for methods in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise BadMethodSpec(f"Asked for more than once: {', '.join(twice)}. Name each once; use seeds to repeat it.")
    if not found:
        raise BadMethodSpec("No method was named. Give at least one, for instance: linear_probe,lora,ssf")
    return tuple(found)


def text_of(methods: MethodSpec | Iterable[MethodSpec]) -> str:
    """The text of one or several specs, fields sorted by name; `parse` reads it back to the same specs."""
    if isinstance(methods, MethodSpec):
        fields = ", ".join(f"{name}={_written(value)}" for name, value in sorted(methods.fields.items()))
        return f"{methods.name}({fields})" if fields else methods.name
    return "+".join(text_of(one) for one in methods)


def parse_values(text: str) -> list[object]:
    """The values in `text`, separated by commas and written as those of fields. Raises BadMethodSpec."""
    return [_value(item.strip(), text) for item in _split(text, ",", text)]


def text_of_value(value: object) -> str:
    """The text of one value, which `parse_values` reads back. Raises BadMethodSpec for a value that has none."""
    return _written(value)


def _value(text: str, whole: str) -> object:
    if text in _PYTHON:
        return _PYTHON[text]
    if text.count("[") > DEPTH:
        raise BadMethodSpec(f"{short(text)} has lists more than {DEPTH} deep inside each other.")
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # also of numbers with thousands of digits
        if text.startswith("[") and text.endswith("]"):
            return [_value(item.strip(), whole) for item in _split(text[1:-1], ",", whole)]
        if _WORDS.fullmatch(text) or (_FORM.fullmatch(text) and text.endswith(")")):
            return text  # a word, or a name with fields of its own, which whoever takes the value reads
    else:
        # Further keys would come from a value with a line break in it; dates have no use here.
        if set(found) == {"value"} and _is_plain(found["value"]):
            return found["value"]
    raise BadMethodSpec(
        f'{short(text)} in {short(whole.strip(), 99)} is not a value. Write it as in TOML, for instance 4, 0.1 or "q".'
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (bool, int, float, str))


def _written(value: object) -> str:
    """The text of a value, as short as the grammar allows. Raises BadMethodSpec for a value that has no text."""
    if value is None or isinstance(value, bool):
        return "None" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return value if _stays_a_word(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_written(item) for item in value)}]"
    if isinstance(value, Mapping):
        # Inside a table TOML has strings in quotes only.
        items = (f"{json.dumps(str(name))} = {_strict(item)}" for name, item in value.items())
        return f"{{{', '.join(items)}}}"
    raise BadMethodSpec(f"A {type(value).__name__} has no text here: {value!r}. Use numbers, words, lists or tables.")


def _strict(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_strict(item) for item in value)}]"
    if value is None:
        raise BadMethodSpec("None has no text inside a table. Leave the key out.")
    return _written(value)


def _stays_a_word(text: str) -> bool:
    """Whether `text` without quotes is read as that string: `q` is, `true` and `inf` are not."""
    try:
        return _WORD.fullmatch(text) is not None and _value(text, text) == text
    except BadMethodSpec:
        return False


def _split(text: str, mark: str, whole: str) -> list[str]:
    """`text` at each `mark` outside brackets and quotes, without empty pieces."""
    pieces, depth, quote, start, escaped = list[str](), 0, "", 0, False
    for position, letter in enumerate(text):
        if quote:
            # TOML escapes a quote with a backslash inside double quotes only.
            closes = letter == quote and not escaped
            escaped = letter == "\\" and quote == '"' and not escaped
            quote = "" if closes else quote
        elif letter in "\"'":
            quote, escaped = letter, False
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == mark and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    if depth or quote:
        raise BadMethodSpec(f"A bracket or quote is not closed in {short(whole.strip(), 99)}.")
    return [piece for piece in (*pieces, text[start:]) if piece.strip()]
