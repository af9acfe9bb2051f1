"""Make flags from pydantic models, so that a default, a bound and a help text are stated once: in the model.

A field becomes one flag. `Flag.path` is the place of its value in the nested mapping from which the model is made, and
in a recipe file. Only flags that the user typed are collected; for the others the recipe file decides, and then the
model's default. Fields with several values take them separated by commas.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from vpeft.errors import VpeftError

ALL = "--help-all"
# Whether the help shows every flag, or those that most runs need and a line that says where the others are.
show_all = False

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
"""The type of a command's own flag that is off by default."""

_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)
_SCALARS = (bool, int, float, str, Path)


class InvalidValue(VpeftError):
    """A flag or a recipe key has a value that its field does not accept."""


@dataclass(frozen=True)
class Flag:
    """One command-line flag: its names, the place of its value, and its field."""

    names: tuple[str, ...]
    path: tuple[str, ...]
    field: FieldInfo
    group: Group
    help: str
    rare: bool = False
    """whether only `--help-all` shows it"""

    @property
    def key(self) -> str:
        """The Python name under which cyclopts passes the value."""
        return "_".join(self.path)

    @property
    def several(self) -> bool:
        """Whether the field takes a sequence, which is typed with commas."""
        return _takes_several(self.field.annotation)

    def parameter(self) -> inspect.Parameter:
        """The parameter for cyclopts; its default is shown in the help and never passed on."""
        annotation = list[str] if self.several else _plain(self.field.annotation)
        shown = shown_default(self.field)
        described = Parameter(
            name=self.names,
            group=self.group,
            help=self.help,
            show_default=(lambda _: shown) if shown is not None else False,
            negative=() if self.several else None,
            show=show_all or not self.rare,
        )
        # The default is None whatever the model's is: cyclopts passes on only what was typed, but validates defaults.
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, described]
        )

    def value(self, given: Any) -> Any:
        """Return the model's value for the typed text: split at commas; a single word is also tried as one value."""
        if not self.several or given is None:
            return given
        words = [word for piece in given for word in split_list(str(piece))]
        if len(words) == 1:
            try:
                TypeAdapter[Any](self.field.annotation).validate_python(words[0])  # type: ignore[arg-type]
            except ValidationError:
                return words
            return words[0]
        return words


def flags_of(
    model: type[BaseModel],
    *,
    group: Group,
    prefix: str = "",
    path: tuple[str, ...] = (),
    skip: Iterable[str] = (),
    renamed: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Flag]:
    """Return one flag per field of `model`, `--<prefix><field>`; fields of nested models follow with a dot."""
    left_out = set(skip)
    made: list[Flag] = []
    for name, field in model.model_fields.items():
        if name in left_out:
            continue
        inner = _model_in(field.annotation)
        if inner is not None:
            made += flags_of(inner, group=group, prefix=f"{prefix}{_hyphened(name)}.", path=(*path, name))
            continue
        names = (renamed or {}).get(name, (f"--{prefix}{_hyphened(name)}",))
        made.append(Flag(names, (*path, name), field, group, field.description or name.replace("_", " ")))
    return made


def with_flags(function: Callable[..., Any], flags: Sequence[Flag]) -> Callable[..., Any]:
    """Return `function` with one keyword for each flag in its signature instead of its parameter `given`.

    `function` takes `given: dict[str, Any]`, the typed flags by `Flag.key`; its other parameters stay.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "given"]
    keys = {flag.key for flag in flags}
    added = [flag.parameter() for flag in flags]

    def command(*args: Any, **keywords: Any) -> Any:
        given = {key: keywords.pop(key) for key in list(keywords) if key in keys}
        return function(*args, **keywords, given=given)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__module__ = function.__module__
    command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return command


def split_list(text: str) -> list[str]:
    """Split `text` at commas, except inside brackets: `lora(rank=4, alpha=8),ssf` gives two words."""
    words, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            words.append(text[start:place])
            start = place + 1
    return [word.strip() for word in (*words, text[start:]) if word.strip()]


def nested(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the typed flags as the nested mapping of a recipe file."""
    result: dict[str, Any] = {}
    for flag in flags:
        if flag.key not in given:
            continue
        level = result
        for step in flag.path[:-1]:
            level = level.setdefault(step, {})
        level[flag.path[-1]] = flag.value(given[flag.key])
    return result


def mistakes(error: ValidationError, flags: Iterable[Flag] = ()) -> InvalidValue:
    """Return a pydantic error as sentences with the flag, the given value and what is wrong with it."""
    by_path = {flag.path: flag.names[0] for flag in flags}
    lines = []
    for one in error.errors(include_url=False):
        location = tuple(step for step in one["loc"] if isinstance(step, str))
        name = next((by_path[location[:end]] for end in range(len(location), 0, -1) if location[:end] in by_path), None)
        shown = name or ".".join(str(step) for step in one["loc"]) or error.title
        given = "" if one["type"] == "missing" else f" (given: {one['input']!r})"
        lines.append(f"{shown}: {one['msg'].removeprefix('Value error, ').rstrip('.')}{given}")
    return InvalidValue("\n".join(dict.fromkeys(lines)))


def _hyphened(name: str) -> str:
    return name.replace("_", "-")


def members(annotation: Any) -> Iterator[Any]:
    """Return the members of a union, including nested ones and `Annotated`; otherwise the annotation itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    elif hasattr(annotation, "__value__"):  # a named alias (`type X = ...`)
        yield from members(annotation.__value__)
    else:
        yield annotation


def _takes_several(annotation: Any) -> bool:
    return any((get_origin(member) or member) in _SEQUENCES for member in members(annotation))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _plain(annotation: Any) -> Any:
    """Return the annotation as far as the command line needs it; unknown ones become text, which pydantic parses."""
    kept: list[Any] = []
    for member in members(annotation):
        if member in (*_SCALARS, type(None)) or get_origin(member) is Literal:
            kept.append(member)
        elif isinstance(member, type) and issubclass(member, Enum):
            kept.append(Literal[tuple(str(item.value) for item in member)])
        else:
            kept.append(str)
    return Union[tuple(dict.fromkeys(kept))]  # noqa: UP007 - built at run time


def shown_default(field: FieldInfo) -> str | None:
    """Return the default as the user would type it; None if there is none to show."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if value is None or value is False:
        return None
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return ",".join(str(item) for item in value) or None
    return str(value)
