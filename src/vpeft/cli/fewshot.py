"""`vpeft fewshot`: tune a method on the few images of each of many episodes, and score the queries."""

from __future__ import annotations

from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.data_flags import data_flags
from vpeft.cli.flags import Flag, Switch, flags_of, nested, with_flags
from vpeft.cli.validated import validated
from vpeft.errors import VpeftError
from vpeft.regimes.episodes import EpisodeSizes
from vpeft.regimes.few_shot import FewShotRecipe, run_few_shot
from vpeft.training.optimisation import Optimisation

_EPISODES = Group("The episodes", sort_key=10)
_FLAGS: tuple[Flag, ...] = (
    *flags_of(EpisodeSizes, group=_EPISODES, path=("sizes",)),
    *flags_of(FewShotRecipe, group=_EPISODES, skip=("data", "sizes", "optimisation")),
    *data_flags(("data",)),
    *flags_of(
        Optimisation, group=Group("The optimisation", sort_key=30), path=("optimisation",), skip=("epochs", "batch")
    ),
)


class IncompleteEpisodes(VpeftError):
    """The data or the method is missing."""


def _fewshot(*, json: Switch = False, given: dict[str, Any]) -> None:
    """Tell a few classes apart after a few images of each, many times over with other classes and images.

    vpeft fewshot --data photos/ --way 5 --shot 1 --method dra

    Each episode draws classes, support images and queries. The method is tuned on the support from its start, for
    `--steps` steps, and the queries are scored. Printed is the mean accuracy with its 95 % interval.

    Parameters
    ----------
    json:
        Print the record as JSON instead of sentences.
    """
    values = nested(_FLAGS, given)
    missing = [
        f"--{name}{hint}"
        for name, hint, there in (
            ("data", " FOLDER", "source" in values.get("data", {})),
            ("method", " NAME (`vpeft methods`)", "method" in values),
        )
        if not there
    ]
    if missing:
        raise IncompleteEpisodes(f"The command does not say everything. Add {'; '.join(missing)}.")
    if "optimisation" in values:  # beside what was typed, the recipe's own defaults
        stated = FewShotRecipe.model_fields["optimisation"].get_default(call_default_factory=True)
        values["optimisation"] = {**stated.model_dump(exclude_unset=True), **values["optimisation"]}
    out = show.console()
    recipe = validated(FewShotRecipe, values, _FLAGS)
    outcome = run_few_shot(recipe, say=(lambda _: None) if json else lambda line: out.print(Text(line)))
    if json:
        show.as_json(outcome.record)
        return
    record = outcome.record
    out.print(
        Text(
            f"{100 * record['accuracy']:.2f} ± {100 * record['interval']:.2f} % over {record['episodes']} episodes, in"
            f" {record['seconds']:.1f} s ({100 * record['reset_share']:.2f} % of it for fresh starts)"
        )
    )


fewshot = with_flags(_fewshot, _FLAGS)
