"""Every key of a recipe as a flag, and a recipe from files, flags, or both.

`--data` and `--data.<field>` for the data, `--<method>.<field>` for the methods, and the plain name for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cyclopts import Group
from pydantic.fields import FieldInfo

from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Flag, flags_of, nested
from vpeft.cli.method_flags import all_method_flags, fields_by_method
from vpeft.errors import VpeftError
from vpeft.guarded import read_toml
from vpeft.method_spec import parse_one, parse_placed
from vpeft.recipes import recipe_file
from vpeft.training.optimisation import Optimisation
from vpeft.training.recipe import BadRecipe, Recipe, TaskChoice

HEAD = "The head of the task, for tasks with a choice: `faster_rcnn`, or with options `upernet(channels=256)`."
_RUN = Group("The run", sort_key=10)
_OPTIMISATION = Group("The optimisation", sort_key=30)


class IncompleteRun(VpeftError):
    """A required setting of a run is missing."""


class SameFolder(VpeftError):
    """Two runs would write into the same folder."""


# What most runs say; the help of a command begins with these, `--help-all` has the rest.
_COMMON = frozenset(
    {
        ("backbone",),
        ("host",),
        ("weights",),
        ("method",),
        ("task",),
        ("start",),
        ("out",),
        ("data", "source"),
        ("data", "augmentation"),
        ("data", "image_size"),
        ("data", "val_fraction"),
        ("optimisation", "epochs"),
        ("optimisation", "batch"),
        ("optimisation", "lr"),
        ("optimisation", "optimiser"),
        ("optimisation", "early_stopping"),
        ("optimisation", "precision"),
        ("optimisation", "seed"),
        ("optimisation", "acceleration"),
        ("optimisation", "fit_memory"),
    }
)


@lru_cache(maxsize=1)
def run_flags() -> tuple[Flag, ...]:
    """Return all flags of a run except those of the methods; the values go where a recipe file has them."""
    method = FieldInfo(
        annotation=str,
        description="How to adapt: a name from `vpeft methods`, with settings `lora(rank=8)`, several with `+`; on"
        " a tower of a model with several `text:lora`.",
    )
    task = FieldInfo(
        annotation=str,
        default="classification",
        description="What is learnt: a name from `vpeft tasks`, with options `regression(loss=huber)`.",
    )
    also = FieldInfo(
        annotation=tuple[str, ...], default=(), description="Further methods that act together with the first."
    )
    nouns = Recipe.model_fields["anatomy"].description or ""
    made = (
        *flags_of(
            Recipe,
            group=_RUN,
            skip=("data", "method", "also", "task", "optimisation", "anatomy"),
            renamed={"start": ("--from",)},
        ),
        Flag(("--task",), ("task",), task, _RUN, task.description or ""),
        Flag(("--head",), ("head",), FieldInfo(annotation=str, default=None), _RUN, HEAD),
        Flag(("--anatomy",), ("anatomy",), FieldInfo(annotation=str, default=None), _RUN, nouns),
        Flag(("--method",), ("method",), method, _RUN, method.description or ""),
        Flag(("--also",), ("also",), also, _RUN, also.description or ""),
        *data_flags(("data",)),
        *flags_of(Optimisation, group=_OPTIMISATION, path=("optimisation",)),
    )
    return tuple(replace(flag, rare=flag.path not in _COMMON) for flag in made)


def recipe_flags() -> tuple[Flag, ...]:
    """Return all flags of a run."""
    return (*run_flags(), *all_method_flags())


def recipe_from(file: Path | None, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of `file`, if there is one, overridden by the typed flags.

    Raises:
        BadRecipe: a key or value does not exist or does not fit; the message has the nearest names.
        IncompleteRun: neither the file nor a flag names the data, the backbone, the method, or the output folder.
    """
    asked, file = file, None if file is None else recipe_file(file)
    typed = nested(run_flags(), given)
    stated = _read(file)
    _methods(typed, stated, given)
    _head(typed, stated)
    missing = [
        f"--{name}{hint}"
        for name, hint, there in (
            ("data", " FOLDER", "source" in {**_table(stated, "data"), **_table(typed, "data")}),
            (
                "backbone",
                " NAME (`vpeft backbones`, pocket_vit is shipped)",
                bool({"backbone", "host"} & {*stated, *typed}),
            ),
            ("method", " NAME (`vpeft methods`)", "method" in {**stated, **typed}),
            ("out", " FOLDER for the adapter and the record", "out" in {**stated, **typed}),
        )
        if not there
    ]
    if missing:
        raise IncompleteRun(
            f"{f'The recipe {asked} and the command do' if file else 'The command does'} not say everything. "
            f"Add {'; '.join(missing)}."
        )
    if file is not None:
        return Recipe.from_toml(file, typed)
    return Recipe.from_mapping(typed, where="The command")


def recipes_from(files: Sequence[Path], given: Mapping[str, Any]) -> tuple[list[str], list[Recipe]]:
    """Return the recipes of several files with their names: the stems of the files, or paths if stems are equal.

    The typed flags override every file, but a method's flags only the files that use the method, and `--out FOLDER`
    means `FOLDER/STEM` for each.

    Raises:
        BadRecipe, IncompleteRun: as `recipe_from`.
        StrayFlag: a flag sets a method that no file uses.
        SameFolder: with `--out`, two files have the same stem.
    """
    files = [recipe_file(file) for file in files]
    stems = [file.stem for file in files]
    called = [file.stem if stems.count(file.stem) == 1 else str(file) for file in files]
    given, folder = dict(given), given.get("out")
    if folder is not None and len(set(stems)) < len(stems):
        same = next(stem for stem in stems if stems.count(stem) > 1)
        raise SameFolder(
            f"{' and '.join(str(file) for file in files if file.stem == same)} would both write into"
            f" {Path(folder) / same}: with several recipes --out FOLDER is FOLDER/NAME for each. Rename a file, or"
            " state `out` in each of them and leave --out away."
        )
    used = [_used(nested(run_flags(), given), _read(file)) for file in files]
    fields_by_method([name for names in used for name in names], given)
    recipes = []
    for file, names in zip(files, used, strict=True):
        others = {flag.key for flag in all_method_flags() if flag.path[0] not in names}
        own = {key: value for key, value in given.items() if key not in others}
        recipes.append(recipe_from(file, own if folder is None else {**own, "out": Path(folder) / file.stem}))
    return called, recipes


def _chosen(typed: Mapping[str, Any], stated: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first method and the further ones: the typed ones, otherwise those of the file."""
    first, *joined = _choices(typed["method"] if "method" in typed else stated.get("method"))
    others = typed.get("also", () if joined else stated.get("also", ()))
    further = [one for other in ([others] if isinstance(others, str) else others) for one in _choices(other)]
    return [first, *joined, *further]


def _used(typed: Mapping[str, Any], stated: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in _chosen(typed, stated) if "name" in one]


def _methods(typed: dict[str, Any], stated: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Give each method its own fields: the typed ones, otherwise those of the file."""
    first, *further = _chosen(typed, stated)
    fields = fields_by_method(_used(typed, stated), given)
    if "method" in typed or first.get("name") in fields:
        typed["method"] = {**first, **fields.get(first["name"], {})}
    if "also" in typed or ("method" in typed and further) or any(one.get("name") in fields for one in further):
        typed["also"] = [{**one, **fields.get(one.get("name", ""), {})} for one in further]


def _head(typed: dict[str, Any], stated: Mapping[str, Any]) -> None:
    """Enter the head into the options of the task, typed or of the file."""
    head = typed.pop("head", None)
    if head is None:
        return
    task = typed.get("task", stated.get("task", TaskChoice().name))
    if isinstance(task, str):
        spec = parse_one(task, "task")
        task = {"name": spec.name, **spec.fields}
    typed["task"] = {**task, "head": head}


def _read(file: Path | None) -> dict[str, Any]:
    """Read a recipe file for a first look; its errors are reported when the recipe is made."""
    if file is None:
        return {}
    return read_toml(file, f"The recipe {file}", BadRecipe)


def _choices(stated: Any) -> list[dict[str, Any]]:
    """Parse methods of a recipe or a flag: a table, or text that joins several with `+`."""
    if isinstance(stated, str):
        return [
            {"name": one.name, **({"tower": tower} if tower else {}), **one.fields}
            for tower, one in parse_placed(stated)
        ]
    return [dict(stated)] if isinstance(stated, Mapping) else [{}]


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = values.get(name)
    return inner if isinstance(inner, Mapping) else {}
