"""Every key of a recipe as a flag, and a recipe from a file, flags, or both.

`--data` and `--data.<field>` for the data, `--<method>.<field>` for the methods, and the plain name for the rest.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cyclopts import Group
from pydantic.fields import FieldInfo

from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Flag, flags_of, nested
from vpeft.cli.method_flags import all_method_flags, fields_by_method
from vpeft.errors import VpeftError
from vpeft.training.optimisation import Optimisation
from vpeft.training.recipe import Recipe

_RUN = Group("The run", sort_key=10)
_OPTIMISATION = Group("The optimisation", sort_key=30)


class IncompleteRun(VpeftError):
    """Something that a run needs was not said."""


@lru_cache(maxsize=1)
def run_flags() -> tuple[Flag, ...]:
    """All flags of a run but those of the methods; the values go where a recipe file has them."""
    method = FieldInfo(annotation=str, description="What to train: a name from `vpeft methods`.")
    also = FieldInfo(
        annotation=tuple[str, ...], default=(), description="Further methods that act together with the first."
    )
    nouns = Recipe.model_fields["anatomy"].description or ""
    return (
        *flags_of(Recipe, group=_RUN, skip=("data", "method", "also", "optimisation", "anatomy")),
        Flag(("--anatomy",), ("anatomy",), FieldInfo(annotation=str, default=None), _RUN, nouns),
        Flag(("--method",), ("method",), method, _RUN, method.description or ""),
        Flag(("--also",), ("also",), also, _RUN, also.description or ""),
        *data_flags(("data",)),
        *flags_of(Optimisation, group=_OPTIMISATION, path=("optimisation",)),
    )


def recipe_flags() -> tuple[Flag, ...]:
    """All flags of a run."""
    return (*run_flags(), *all_method_flags())


def recipe_from(file: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe that `file` holds, if there is one, with the flags that were typed going before it.

    Raises:
        BadRecipe: what was said does not exist or does not fit, with the nearest names.
        IncompleteRun: neither the file nor a flag says where the data are, which backbone, which method, or where to.
    """
    typed = nested(run_flags(), given)
    stated = _read(file)
    _methods(typed, stated, given)
    missing = [
        f"--{name}{hint}"
        for name, hint, there in (
            ("data", " FOLDER", "source" in {**_table(stated, "data"), **_table(typed, "data")}),
            ("backbone", " NAME (`vpeft backbones`, pocket_vit is shipped)", "backbone" in {**stated, **typed}),
            ("method", " NAME (`vpeft methods`)", "method" in {**stated, **typed}),
            ("out", " FOLDER for the adapter and the record", "out" in {**stated, **typed}),
        )
        if not there
    ]
    if missing:
        raise IncompleteRun(
            f"{'The recipe and the command do' if file else 'The command does'} not say everything. "
            f"Add {'; '.join(missing)}."
        )
    if file is not None:
        return Recipe.from_toml(file, typed)
    return Recipe.from_mapping(typed, where="The command")


def _methods(typed: dict[str, Any], stated: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Put the methods' own flags to their methods: those that were typed, else those of the file."""
    first = {"name": typed["method"]} if "method" in typed else _choice(stated.get("method"))
    others = typed.get("also", [_choice(one) for one in stated.get("also", ())])
    further = [_choice(one) for one in ([others] if isinstance(others, str) else others)]
    used = [one["name"] for one in (first, *further) if "name" in one]
    fields = fields_by_method(used, given)
    if "method" in typed or first.get("name") in fields:
        typed["method"] = {"name": first["name"], **fields.get(first["name"], {})}
    if "also" in typed or any(one.get("name") in fields for one in further):
        typed["also"] = [{**one, **fields.get(one.get("name", ""), {})} for one in further]


def _read(file: Path | None) -> dict[str, Any]:
    """What a recipe file says, for a first look; what is wrong with it is worded when the recipe is made."""
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        Recipe.from_toml(file)
        raise


def _choice(stated: Any) -> dict[str, Any]:
    if isinstance(stated, str):
        return {"name": stated}
    return dict(stated) if isinstance(stated, Mapping) else {}


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = values.get(name)
    return inner if isinstance(inner, Mapping) else {}
