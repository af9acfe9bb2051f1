"""A whole run as one model: data, backbone, method, optimisation; read from TOML, and written back as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from vpeft.backbones.create import TRANSFORMERS
from vpeft.backbones.own_code import OWN_CODE
from vpeft.backbones.own_model import Anatomy, anatomy_from
from vpeft.backbones.probe import BadAnatomy
from vpeft.backbones.trust import TYPED, Trust
from vpeft.backbones.weights import Difference
from vpeft.data.config import DataConfig
from vpeft.errors import VpeftError, nearest
from vpeft.guarded import read_toml
from vpeft.method import Method, get_method, method_names
from vpeft.method_spec import parse, parse_one
from vpeft.task import DEFAULT, Task, all_tasks, get_task
from vpeft.training.optimisation import MOVED, Optimisation
from vpeft.training.toml_text import toml_text


class BadRecipe(VpeftError):
    """A recipe that cannot be read, or says something that does not exist."""


class _Choice(BaseModel):
    """A name and fields, written flat (`{name = "lora", rank = 8}`) or as text (`"lora(rank=8)"`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fields: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        if isinstance(given, str):
            spec = parse_one(given)
            return {"name": spec.name, "fields": spec.fields}
        if isinstance(given, Mapping) and "fields" not in given:
            return {
                **({"name": given["name"]} if "name" in given else {}),
                "fields": {key: value for key, value in given.items() if key != "name"},
            }
        return given

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.fields}


class MethodChoice(_Choice):
    """A method's name and hyper-parameters. All fields are filled in and checked.

    Raises `UnknownMethod` and `BadField` for a wrong name, field or value.
    """

    name: str = Field(description="Name of the method; `vpeft methods` lists them.")
    fields: dict[str, Any] = Field(
        default_factory=dict, description="Its hyper-parameters; those left out are default."
    )
    _method: Method = PrivateAttr()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._method = get_method(self.name)(**self.fields)
        self.fields.clear()
        self.fields.update(self._method.model_dump(mode="json"))
        return self

    def build(self) -> Method:
        """The method itself."""
        return self._method


class TaskChoice(_Choice):
    """A task's name and options; those left out are default, and what the data tell is filled in later.

    Raises `UnknownTask` and `BadOption` for a wrong name, option or value.
    """

    name: str = Field(default=DEFAULT, description="What is learnt; `vpeft tasks` lists the tasks.")
    fields: dict[str, Any] = Field(default_factory=dict, description="Its options.")
    _task: Task = PrivateAttr()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._task = get_task(self.name)(**self.fields)
        stated = self._task.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        self.fields.clear()
        self.fields.update(stated)
        return self

    def build(self) -> Task:
        """The task itself, not bound to any data yet."""
        return self._task


class Recipe(BaseModel):
    """One run: what is learnt, on which backbone, how, and where the results go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(
        description="Name of the pre-trained model; `vpeft backbones` lists them, hf:ID or hf:FOLDER is transformers',"
        " py:FILE.py:NAME a function or class of yours that makes one."
    )
    pretrained: bool = Field(default=True, description="Load the backbone's weights; false starts at random.")
    weights: Path | None = Field(
        default=None, description="File of weights to load instead: .safetensors, .npz or .pth (weights only)."
    )
    weights_prefix: str = Field(default="", description="What the keys of that file start with, such as `module.`.")
    weights_allow: tuple[Difference, ...] = Field(
        default=(), description="Differences of weights and backbone to accept: missing, unexpected, shape."
    )
    channels_rule: Literal["repeat", "mean", "new"] = Field(
        default="repeat",
        description="Where data.channels is not the backbone's: filters repeated, their mean, or new and trained.",
    )
    anatomy: Anatomy | None = Field(
        default=None,
        description="For a model that no family knows: a TOML file of its nouns (docs/own_model.md), or `generic`.",
    )
    quantise: Literal["int8", "nf4"] | None = Field(
        default=None, description="Keep the blocks' frozen linear maps in eight or four bits; adapters stay precise."
    )
    out: Path | None = Field(default=None, description="Folder for the adapter, the checkpoint and the record.")
    data: DataConfig
    task: TaskChoice = Field(default_factory=TaskChoice)
    method: MethodChoice
    also: tuple[MethodChoice, ...] = Field(default=(), description="Further methods that act together with the first.")
    train: tuple[str, ...] = Field(
        default=(), description="Further modules of the model that train as they are and are saved with the adapter."
    )
    start: Path | None = Field(
        default=None,
        description="Adapter file to start from; its head is taken too where the outputs are the same.",
    )
    optimisation: Optimisation = Field(default_factory=Optimisation)
    _backbone_of_file: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _several_in_one(cls, given: Any) -> Any:
        """`method = "lora(rank=4)+ssf"` is a method and further ones; options that went to the task are put there."""
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        if isinstance(given.get("method"), str):
            first, *more = parse(given["method"]).methods
            given["method"] = {"name": first.name, **first.fields}
            if more:
                given["also"] = [*({"name": one.name, **one.fields} for one in more), *given.get("also", ())]
        return _with_moved_options(given)

    @field_validator("anatomy", mode="before")
    @classmethod
    def _nouns(cls, given: Any) -> Any:
        """A table of nouns, the name of a file of them, or "generic": the nouns themselves are kept in every case."""
        return anatomy_from(given) if isinstance(given, (str, Path)) else given

    @property
    def seed(self) -> int:
        """The seed of the run, `optimisation.seed`; the splits have their own, `data.seed`."""
        return self.optimisation.seed

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods, in the order in which they are attached."""
        return tuple(choice.build() for choice in (self.method, *self.also))

    @classmethod
    def from_toml(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a recipe file; `overrides` win over it, as nested mappings or with dots: `{"optimisation.epochs": 5}`.

        Paths in it are relative to the present directory. An override of the method's name drops the file's
        hyper-parameters of another method.

        Raises:
            BadRecipe: the file cannot be read, a key is unknown (with the nearest name and its full path), or a value
                is wrong.
        """
        given, typed = read_toml(path, f"The recipe {path}", BadRecipe), _nested(overrides or {})
        recipe = cls.from_mapping(_merged(given, typed), where=f"The recipe {path}")
        if "backbone" not in typed and recipe.backbone.startswith((OWN_CODE, TRANSFORMERS)):
            recipe._backbone_of_file = True
        return recipe

    def trust(self, *, code: bool, download: bool) -> Trust:
        """What the backbone's name may lead to: anything where the user has typed it, what was said for a file's."""
        return Trust(code, download) if self._backbone_of_file else TYPED

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "The recipe") -> Self:
        """A recipe from nested mappings; raises `BadRecipe` like `from_toml`."""
        mistakes = list(_unknown_keys(cls, values))
        if not mistakes:
            try:
                return cls.model_validate(dict(values))
            except ValidationError as error:
                mistakes = [_worded(one) for one in error.errors(include_url=False)]
            except BadAnatomy as error:
                mistakes = [f"anatomy: {error}"]
            except VpeftError as error:
                mistakes = [f"method: {error}"]
            except (ValueError, TypeError, RecursionError, OverflowError) as error:
                mistakes = [f"a value cannot be read: {str(error).partition(chr(10))[0][:200]}"]
        raise BadRecipe(f"{where} does not fit:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))

    def to_toml(self) -> str:
        """This recipe as a TOML document, with every default written out, so that it means the same later.

        Raises:
            BadRecipe: a field that has a default was set to None, which TOML cannot say.
        """
        text = toml_text(self.model_dump(mode="json"))
        again = type(self).from_mapping(tomllib.loads(text))
        again._backbone_of_file = self._backbone_of_file
        if again != self:
            raise BadRecipe("This recipe sets a field to None against its default, and TOML has no None.")
        return text


def _with_moved_options(given: dict[str, Any]) -> dict[str, Any]:
    """A recipe from before there were tasks states options of the task under the optimisation."""
    optimisation = given.get("optimisation")
    if not isinstance(optimisation, Mapping) or not any(optimisation.get(name) for name in MOVED):
        return given
    moved = {name: optimisation[name] for name in MOVED if optimisation.get(name)}
    task = given.get("task") or {}
    task = {"name": task} if isinstance(task, str) else dict(task)
    rest = {name: value for name, value in optimisation.items() if name not in moved}
    return {**given, "task": {**moved, **task}, "optimisation": rest}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        first, _, rest = key.partition(".")
        inner = _nested({rest: value}) if rest else _nested(value) if isinstance(value, Mapping) else value
        result = _merged(result, {first: inner})
    return result


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key in ("method", "task"):
            old, value = _as_choice(old), _as_choice(value)
            other = isinstance(old, Mapping) and isinstance(value, Mapping) and "name" in value and "name" in old
            if other and value["name"] != old["name"]:
                old = None
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _as_choice(value: Any) -> Any:
    if not isinstance(value, str) or "+" in value:
        return value
    spec = parse_one(value)
    return {"name": spec.name, **spec.fields}


def _fields(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a nested field."""
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _unknown_keys(model: type[BaseModel], values: Any, path: str = "") -> Iterator[str]:
    """A sentence for each key that does not exist, with its full path and where it may have been meant."""
    if model is MethodChoice:
        yield from _unknown_of_method(values, path)
        return
    if model is TaskChoice:
        yield from _unknown_of_task(values, path)
        return
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        if model is Optimisation and key in MOVED:
            continue
        if key not in model.model_fields:
            elsewhere = [known for known in _paths(Recipe) if known.rpartition(".")[2] == key]
            hint = f"It belongs to {' or '.join(elsewhere)}." if elsewhere else nearest(key, model.model_fields)
            yield f"There is no key {path}{key}. {hint}"
        elif (inner := _fields(model, key)) is not None:
            yield from _unknown_keys(inner, value, f"{path}{key}.")
        elif key == "also" and isinstance(value, (list, tuple)):
            for number, choice in enumerate(value):
                yield from _unknown_of_method(choice, f"also.{number}.")


def _unknown_of_method(values: Any, path: str) -> Iterator[str]:
    values = _as_choice(values)
    if not isinstance(values, Mapping) or "fields" in values or not isinstance(values.get("name"), str):
        return
    known = method_names()
    if values["name"] not in known:
        yield f"{path}name: there is no method {values['name']!r}. {nearest(values['name'], known)}"
        return
    fields = get_method(values["name"]).model_fields
    for key in values:
        if key != "name" and key not in fields:
            hint = nearest(key, fields) if fields else "It has no hyper-parameters."
            yield f"There is no key {path}{key} for the method {values['name']!r}. {hint}"


def _unknown_of_task(values: Any, path: str) -> Iterator[str]:
    values = _as_choice(values)
    if not isinstance(values, Mapping) or "fields" in values:
        return
    name, known = values.get("name", DEFAULT), all_tasks()
    if name not in known:
        yield f"{path}name: there is no task {name!r}. {nearest(str(name), known)}"
        return
    options = known[name].options()
    for key in values:
        if key != "name" and key not in options and key not in known[name].model_fields:
            yield f"There is no key {path}{key} for the task {name!r}. {nearest(key, options)}"


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        inner = _fields(model, name)
        if inner is None:
            yield f"{prefix}{name}"
        elif not issubclass(inner, _Choice):
            yield from _paths(inner, f"{prefix}{name}.")


def _worded(error: Any) -> str:
    where = ".".join(str(step) for step in error["loc"])
    if error["type"] == "missing":
        return f"{where} is missing; it has no default."
    # pydantic puts a label before the sentences of our own checks
    said = error["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where} = {error['input']!r}: {said}." if where else f"{said}."
