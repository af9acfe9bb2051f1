"""`vpeft auto`: choose method, size, learning rate and epochs for your images, within a time and a memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.text import Text

from vpeft.bench.auto import AutoOutcome, experience_of, run_auto, shipped
from vpeft.bench.auto.choose import in_epochs
from vpeft.bench.ledger import open_ledger
from vpeft.cli import show
from vpeft.cli.failure import INTERRUPTED, say_warning
from vpeft.cli.flags import Switch, with_flags
from vpeft.cli.recipe_flags import recipe_from, run_flags
from vpeft.errors import VpeftError

_CHOSEN_HERE: tuple[tuple[str, ...], ...] = (
    ("method",),
    ("also",),
    ("start",),
    ("optimisation", "lr"),
    ("optimisation", "weight_decay"),
    ("optimisation", "fit_memory"),
)
_FLAGS = tuple(flag for flag in run_flags() if flag.path not in _CHOSEN_HERE)
_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
# Whatever stands there is replaced; a recipe must name one.
_ANY = "linear_probe"


class BadBudget(VpeftError):
    """The text is no length of time."""


def _auto(
    *,
    budget: str = "10min",
    memory: str | None = None,
    records: Path | None = None,
    protocol: str = "pocket@1",
    resume: bool = True,
    json: Switch = False,
    given: dict[str, Any],
) -> int:
    """Choose method, size, learning rate and epochs for your images, and train with them.

    vpeft auto --data photos/ --backbone pocket_vit --budget 10min --memory 4GB --out runs/auto

    Candidates come from records: those that did well on tasks whose frozen features look alike. They race on the
    validation images within the budget; the winner is evaluated once on the test images. The folder gets the adapter, a
    table of all runs, and a recipe that repeats the best one. The same command continues an interrupted call.

    Parameters
    ----------
    budget:
        Time for everything, such as 90s, 10min or 2h.
    memory:
        Largest memory of a training step, such as 4GB; a step that needs more is made to fit, or its method is left
        out.
    records:
        Choose from the search runs of this ledger instead of those that ship with the package.
    protocol:
        Whose search runs of `--records` are taken; those on `--backbone`.
    resume:
        Continue an interrupted call from the folder; otherwise start again.
    json:
        Print the figures as JSON instead of sentences.
    """
    seconds = seconds_of(budget)
    typed = dict(given)
    if memory is not None:
        typed["optimisation_fit_memory"] = memory
    recipe = recipe_from(None, {**typed, "method": _ANY})
    known = shipped() if records is None else experience_of(open_ledger(records), protocol, recipe.backbone)
    stated = frozenset(key.removeprefix("optimisation_") for key in given if key.startswith("optimisation_"))
    out = show.console()
    say = (lambda line: None) if json else (lambda line: out.print(Text(line)))
    outcome = run_auto(recipe, known, seconds, stated=stated, resume=resume, say=say)
    if outcome.stopped:
        say_warning("stopped. Run the same command again to continue.")
        return INTERRUPTED
    if json:
        show.as_json(_figures(outcome))
    else:
        out.print(Text(_sentences(outcome)))
    return 0


def seconds_of(text: str) -> float:
    """Parse 90s, 10min, 1.5h or 90; return seconds.

    Raises:
        BadBudget: it is no time, or none at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in ("", *_SECONDS) or float(found[1]) == 0:
        raise BadBudget(f"{text!r} is no time. Write a number and a unit: 90s, 10min, 1.5h.")
    return float(found[1]) * _SECONDS.get(found[2], 1.0)


def _figures(outcome: AutoOutcome) -> dict[str, Any]:
    assert outcome.winner is not None and outcome.run is not None
    run = outcome.run
    return {
        "method": outcome.winner.method,
        "lr": outcome.winner.lr,
        "weight_decay": outcome.winner.weight_decay,
        "epochs": outcome.epochs,
        "validation": None if run.result.val is None else run.result.val.value,
        "test": None if run.test is None else run.test.value,
        "runs": len(outcome.entries),
        "seconds": round(outcome.seconds, 1),
        "why": list(outcome.why),
        "adapter": str(run.adapter),
        "recipe": str(outcome.folder / "recipe.toml"),
        "table": str(outcome.folder / "table.csv"),
    }


def _sentences(outcome: AutoOutcome) -> str:
    assert outcome.winner is not None and outcome.run is not None
    run, winner = outcome.run, outcome.winner
    scores = [
        f"{split} {scored.sentence()}"
        for split, scored in (("validation", run.result.val), ("test", run.test))
        if scored is not None
    ]
    return (
        f"chosen: {winner.words()} for {in_epochs(outcome.epochs)}: {', '.join(scores)}\n"
        f"{winner.method}\n"
        f"{len(outcome.entries)} runs in {show.duration(outcome.seconds)}; table: {outcome.folder / 'table.csv'};"
        f" to repeat it: vpeft train {outcome.folder / 'recipe.toml'}\n"
        f"adapter: {run.adapter}"
    )


auto = with_flags(_auto, _FLAGS)
