"""`vpeft shots`: few images of each class and the names of the classes, on an image-text model."""

from __future__ import annotations

from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Flag, Switch, flags_of, nested, with_flags
from vpeft.cli.validated import validated
from vpeft.errors import VpeftError
from vpeft.regimes.few_shot_by_name import FewShotByNameRecipe, run_few_shot_by_name
from vpeft.training.optimisation import Optimisation

_RUN = Group("The run", sort_key=10)
_FLAGS: tuple[Flag, ...] = (
    *flags_of(FewShotByNameRecipe, group=_RUN, skip=("data", "optimisation")),
    *data_flags(("data",)),
    *flags_of(Optimisation, group=Group("The optimisation", sort_key=30), path=("optimisation",)),
)


class IncompleteShots(VpeftError):
    """The data, the model or the method is missing."""


def _shots(*, json: Switch = False, given: dict[str, Any]) -> None:
    """Tell classes apart by their names after a few images of each, with an image-text model.

    vpeft shots --data photos/ --backbone host::hf:FOLDER --method "image:lora(rank=2)" --shots 4 --base-to-new

    With `--base-to-new` the first half of the classes is learnt, and the test is on it and on the other half, by its
    names; printed is the harmonic mean too. `--protocol` says whether validation images may be looked at.

    Parameters
    ----------
    json:
        Print the record as JSON instead of a sentence.
    """
    values = nested(_FLAGS, given)
    missing = [
        f"--{name}{hint}"
        for name, hint, there in (
            ("data", " FOLDER", "source" in values.get("data", {})),
            ("backbone", " NAME of an image-text model", "backbone" in values),
            ("method", ' NAME (`vpeft methods`), on a tower "text:lora"', "method" in values),
        )
        if not there
    ]
    if missing:
        raise IncompleteShots(f"The command does not say everything. Add {'; '.join(missing)}.")
    if "optimisation" in values:  # beside what was typed, the recipe's own defaults
        stated = FewShotByNameRecipe.model_fields["optimisation"].get_default(call_default_factory=True)
        values["optimisation"] = {**stated.model_dump(exclude_unset=True), **values["optimisation"]}
    out = show.console()
    recipe = validated(FewShotByNameRecipe, values, _FLAGS)
    record = run_few_shot_by_name(recipe, say=(lambda _: None) if json else lambda line: out.print(Text(line))).record
    if json:
        show.as_json(record)
        return
    told = [f"{name.replace('_', ' ')} {100 * record[name]:.2f} %" for name in SCORES if name in record]
    out.print(Text(f"{', '.join(told)}; {record['trainable']:,} parameters trained; {record['protocol']}"))


SCORES = ("accuracy", "base", "new", "harmonic_mean")
shots = with_flags(_shots, _FLAGS)
