"""`Recipe`: a whole run as one model, with data, backbone, method and optimisation. It reads and writes TOML."""

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

from vpeft.backbones.host_create import host_name
from vpeft.backbones.names import fetches_or_runs
from vpeft.backbones.own_model import Anatomy, anatomy_from
from vpeft.backbones.probe import BadAnatomy
from vpeft.backbones.trust import TYPED, Trust
from vpeft.backbones.weights import Difference
from vpeft.data.config import DataConfig
from vpeft.errors import VpeftError, nearest
from vpeft.guarded import read_toml
from vpeft.head import BadHead
from vpeft.injection.placed import TOGETHER, MethodLike
from vpeft.method import Method, get_method, method_aliases, method_names
from vpeft.method_spec import parse_one, parse_placed
from vpeft.settings import Settings
from vpeft.task import DEFAULT, Task, all_tasks, full_name, get_task
from vpeft.training.optimisation import MOVED, Optimisation
from vpeft.training.toml_text import toml_text


class BadRecipe(VpeftError):
    """A recipe cannot be read, or names something that does not exist."""


class _Choice(BaseModel):
    """A name with fields, as a table (`{name = "lora", rank = 8}`) or as text (`"lora(rank=8)"`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fields: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        return _gathered(given)

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.fields}


def _gathered(given: Any) -> Any:
    """A name and its fields out of text or a flat table."""
    if isinstance(given, str):
        spec = parse_one(given)
        return {"name": spec.name, "fields": spec.fields}
    if isinstance(given, Mapping) and "fields" not in given:
        return {
            **({"name": given["name"]} if "name" in given else {}),
            "fields": {key: value for key, value in given.items() if key != "name"},
        }
    return given


class MethodChoice(_Choice):
    """A method's name and hyper-parameters. All fields are filled in and checked.

    A wrong name, field or value raises `UnknownMethod` or `BadField`.
    """

    name: str = Field(description="Name of the method; `vpeft methods` lists them.")
    fields: dict[str, Any] = Field(default_factory=dict, description="Its hyper-parameters; missing ones are default.")
    tower: str = Field(default="", description="The tower that it is on, of a model with several; * is all together.")
    _method: Method = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        if isinstance(given, str):
            tower, spec = parse_placed(given)[0]
            return {"name": spec.name, "fields": spec.fields, "tower": tower}
        if isinstance(given, Mapping) and "fields" not in given and "tower" in given:
            rest = {key: value for key, value in given.items() if key not in ("name", "tower")}
            return {**({"name": given["name"]} if "name" in given else {}), "tower": given["tower"], "fields": rest}
        return _gathered(given)

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **({"tower": self.tower} if self.tower else {}), **self.fields}

    @field_validator("name")
    @classmethod
    def _of_records(cls, name: str) -> str:
        """Of a method with several names, the one for records."""
        return get_method(name).name

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._method = get_method(self.name)(**self.fields)
        self.fields.clear()
        self.fields.update(self._method.model_dump(mode="json"))
        return self

    def build(self) -> Method:
        """Return the method."""
        return self._method


class TaskChoice(_Choice):
    """A task's name and options. Missing options are default; `Task.bind` fills in what the data tell.

    A wrong name, option or value raises `UnknownTask` or `BadOption`.
    """

    name: str = Field(default=DEFAULT, description="What is learnt; `vpeft tasks` lists the tasks.")
    fields: dict[str, Any] = Field(default_factory=dict, description="Its options.")
    _task: Task = PrivateAttr()

    @field_validator("name")
    @classmethod
    def _in_full(cls, name: str) -> str:
        return full_name(name)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._task = get_task(self.name)(**self.fields)
        stated = self._task.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        self.fields.clear()
        self.fields.update(stated)
        return self

    def build(self) -> Task:
        """Return the task, not yet bound to data."""
        return self._task


class Recipe(Settings):
    """One run: task, backbone, method, optimisation, and the folder of the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(
        description="Pre-trained model: a name from `vpeft backbones`, hf:ID or hf:FOLDER (transformers), or"
        " py:FILE.py:NAME (your own function or class)."
    )
    host: str | None = Field(
        default=None,
        description="In place of a backbone, a whole model that keeps its own heads and loss: hf:FOLDER (transformers),"
        " torchvision:NAME or py:FILE.py:NAME. Without a task it learns what it is made for.",
    )
    pretrained: bool = Field(default=True, description="Load the backbone's weights; false: random weights.")
    weights: Path | None = Field(
        default=None, description="File of weights to load instead: .safetensors, .npz or .pth (weights only)."
    )
    weights_prefix: str = Field(default="", description="Prefix of the keys in that file, such as `module.`.")
    weights_allow: tuple[Difference, ...] = Field(
        default=(), description="Accepted differences between weights and backbone: missing, unexpected, shape."
    )
    channels_rule: Literal["repeat", "mean", "new"] = Field(
        default="repeat",
        description="If data.channels is not the backbone's: repeat its filters, use their mean, or train new ones.",
    )
    frames_rule: Literal["interpolate", "first"] = Field(
        default="interpolate",
        description="If data.clip.frames is not the number of a video model: interpolate its positions in time, or"
        " take the first of them.",
    )
    anatomy: Anatomy | None = Field(
        default=None,
        description="For a model that no family knows: a TOML file that names its parts (docs/own_model.md), or"
        " `generic`.",
    )
    quantise: Literal["int8", "nf4"] | None = Field(
        default=None, description="Store the blocks' frozen linear layers in eight or four bits; adapters stay precise."
    )
    out: Path | None = Field(default=None, description="Folder for the adapter, the checkpoint and the record.")
    data: DataConfig
    task: TaskChoice = Field(default_factory=TaskChoice)
    method: MethodChoice
    also: tuple[MethodChoice, ...] = Field(default=(), description="Further methods that act together with the first.")
    train: tuple[str, ...] = Field(
        default=(), description="Further modules of the model that train and are saved with the adapter."
    )
    start: Path | None = Field(
        default=None,
        description="Adapter file to start from, with its head if the outputs are equal.",
    )
    optimisation: Optimisation = Field(default_factory=Optimisation)
    _backbone_of_file: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _several_in_one(cls, given: Any) -> Any:
        """Split `method = "lora(rank=4)+ssf"` into a method and further ones; move options of the task."""
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        if isinstance(given.get("method"), str):
            first, *more = (
                {"name": one.name, **({"tower": tower} if tower else {}), **one.fields}
                for tower, one in parse_placed(given["method"])
            )
            given["method"] = first
            if more:
                given["also"] = [*more, *given.get("also", ())]
        if isinstance(given.get("host"), str):
            named = given.setdefault("backbone", host_name(given["host"]))
            if named != host_name(given["host"]):
                raise ValueError(f"host {given['host']!r} and backbone {named!r} are two models; give one of them")
        return _with_moved_options(given)

    @field_validator("anatomy", mode="before")
    @classmethod
    def _nouns(cls, given: Any) -> Any:
        """Read an anatomy: a table, the name of a TOML file, or "generic". The result is a table or "generic"."""
        return anatomy_from(given) if isinstance(given, (str, Path)) else given

    @property
    def seed(self) -> int:
        """The seed of the run, `optimisation.seed`. The splits have their own, `data.seed`."""
        return self.optimisation.seed

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods, in the order in which they are attached."""
        return tuple(choice.build() for choice in (self.method, *self.also))

    def placed(self, several_towers: bool) -> tuple[MethodLike, ...]:
        """All methods, each on the tower that is named; on several towers one that couples them is on all together."""
        found: list[MethodLike] = []
        for choice in (self.method, *self.also):
            method, tower = choice.build(), choice.tower
            if several_towers and not tower and type(method).edits_across is not Method.edits_across:
                tower = TOGETHER
            found.append({tower: method} if tower else method)
        return tuple(found)

    @classmethod
    def from_toml(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a recipe file.

        Args:
            path: the file. Paths inside it are relative to the present directory.
            overrides: values that replace those of the file, nested or with dots: {"optimisation.epochs": 5}. A new
                name of the method drops the hyper-parameters of the file's method.

        Raises:
            BadRecipe: the file cannot be read, a key is unknown (the message has the nearest name and the full path),
                or a value is wrong.
        """
        given, typed = read_toml(path, f"The recipe {path}", BadRecipe), _nested(overrides or {})
        recipe = cls.from_mapping(_merged(given, typed), where=f"The recipe {path}")
        if not typed.keys() & {"backbone", "host"} and fetches_or_runs(recipe.backbone):
            recipe._backbone_of_file = True
        return recipe

    def trust(self, *, code: bool, download: bool) -> Trust:
        """Return which code and downloads the backbone's name may cause.

        If the user typed the name, everything is allowed; if a file named it, only what the arguments allow.
        """
        return Trust(code, download) if self._backbone_of_file else TYPED

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "The recipe") -> Self:
        """Return a recipe from nested mappings; raises `BadRecipe` as `from_toml` does."""
        mistakes = list(_unknown_keys(cls, values))
        if not mistakes:
            try:
                return cls.model_validate(dict(values))
            except ValidationError as error:
                mistakes = [_worded(one) for one in error.errors(include_url=False)]
            except BadAnatomy as error:
                mistakes = [f"anatomy: {error}"]
            except BadHead as error:
                mistakes = [f"task: {error}"]
            except VpeftError as error:
                mistakes = [f"method: {error}"]
            except (ValueError, TypeError, RecursionError, OverflowError) as error:
                mistakes = [f"a value cannot be read: {str(error).partition(chr(10))[0][:200]}"]
        raise BadRecipe(f"{where} does not fit:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))

    def changed(self, values: Mapping[str, Any]) -> Self:
        """Return this recipe with other values, by dotted keys such as `optimisation.lr` or `method.rank`.

        Another method drops the hyper-parameters of this one. Raises `BadRecipe` as `from_toml` does.
        """
        whole = self.model_dump(mode="json", exclude_none=True)
        again = type(self).from_mapping(_merged(whole, _nested(values)), where="The changed recipe")
        again._backbone_of_file = self._backbone_of_file
        return again

    def keys(self) -> tuple[str, ...]:
        """Return all dotted keys that `changed` takes, those of this recipe's method and task among them."""
        method, task = type(self.method.build()), type(self.task.build())
        inside = (*(f"method.{name}" for name in method.model_fields), *(f"task.{name}" for name in task.options()))
        return (*_paths(Recipe), "method", "task", *inside)

    def to_toml(self) -> str:
        """Return this recipe as a TOML document with all defaults, so that it means the same in later versions.

        Raises:
            BadRecipe: a field that has a default was set to None, which TOML cannot express.
        """
        text = toml_text(self.model_dump(mode="json"))
        again = type(self).from_mapping(tomllib.loads(text))
        again._backbone_of_file = self._backbone_of_file
        if again != self:
            raise BadRecipe("This recipe sets a field with a default to None, which TOML cannot express.")
        return text


def _with_moved_options(given: dict[str, Any]) -> dict[str, Any]:
    """Move options of the task that older recipes have under the optimisation."""
    optimisation = given.get("optimisation")
    if not isinstance(optimisation, Mapping) or not any(optimisation.get(name) for name in MOVED):
        return given
    moved = {name: optimisation[name] for name in MOVED if optimisation.get(name)}
    task = given.get("task") or {}
    task = {"name": task} if isinstance(task, str) else dict(task)
    rest = {name: value for name, value in optimisation.items() if name not in moved}
    return {**given, "task": {**moved, **task}, "optimisation": rest}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings."""
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
    tower, spec = parse_placed(value)[0]
    return {"name": spec.name, **({"tower": tower} if tower else {}), **spec.fields}


def _fields(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model class of a nested field."""
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _unknown_keys(model: type[BaseModel], values: Any, path: str = "") -> Iterator[str]:
    """Return a sentence for each key that does not exist, with its full path and the nearest key."""
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
    known = [*method_names(), *method_aliases()]
    if values["name"] not in known:
        yield f"{path}name: there is no method {values['name']!r}. {nearest(values['name'], known)}"
        return
    fields = get_method(values["name"]).model_fields
    for key in values:
        if key not in ("name", "tower") and key not in fields:
            hint = nearest(key, fields) if fields else "It has no hyper-parameters."
            yield f"There is no key {path}{key} for the method {values['name']!r}. {hint}"


def _unknown_of_task(values: Any, path: str) -> Iterator[str]:
    values = _as_choice(values)
    if not isinstance(values, Mapping) or "fields" in values:
        return
    name, known = full_name(str(values.get("name", DEFAULT))), all_tasks()
    if name not in known:
        yield f"{path}name: there is no task {name!r}. {nearest(name, known)}"
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
