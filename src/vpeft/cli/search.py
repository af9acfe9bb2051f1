"""`vpeft search METHOD`: the values of recipe keys by trials, or the search that a method itself offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cyclopts import Group
from rich.text import Text

from vpeft.cli import show
from vpeft.cli.failure import INTERRUPTED, say_warning
from vpeft.cli.flags import Switch, flags_of, nested, split_list, with_flags
from vpeft.cli.recipe_flags import recipe_flags, recipe_from
from vpeft.cli.train import summary
from vpeft.cli.validated import validated
from vpeft.errors import VpeftError
from vpeft.method import Evolution
from vpeft.method_spec import parse_placed
from vpeft.methods import get
from vpeft.training.run import RunOutcome
from vpeft.training.search import SearchOutcome, run_search, searchable
from vpeft.training.search_space import Space
from vpeft.training.search_strategies import SearchPlan
from vpeft.training.space_search import SpaceSearchOutcome, search_space

_PLAN = tuple(flags_of(SearchPlan, group=Group("The search of a space", sort_key=5), path=("plan",)))
_EVOLUTION = tuple(flags_of(Evolution, group=Group("The search of a method", sort_key=6), path=("evolution",)))


class NothingToSearch(VpeftError):
    """Neither a space nor a budget was given, or both; or no method was named."""


def _search(
    method: str | None = None,
    /,
    *,
    space: list[str] | None = None,
    budget: int | None = None,
    recipe: Path | None = None,
    supernet_epochs: int | None = None,
    supernet_lr: float | None = None,
    resume: bool = True,
    json: Switch = False,
    trust_code: Switch = False,
    allow_download: Switch = False,
    given: dict[str, Any],
) -> int:
    """Choose settings on the validation images: any keys of a recipe, or the parts of a method that offers it.

    vpeft search lora --space "lr=log(1e-4, 1e-1)" --space "rank=int(1, 16)" --by optuna --data photos --out runs/s

    vpeft search noah --budget 300000 --data pocket/count --out runs/noah

    With `--space`, trials with other values of these keys are trained; the best one on the validation images is
    evaluated once on the test images. With `--budget`, a method's supernet is trained and searched under a parameter
    budget, and the best candidate is trained. After an interruption, the same command continues where it stopped.

    Parameters
    ----------
    method:
        The method; with `--budget` one that offers a search. A recipe file may name it instead.
    space:
        A key with what it may be: lr=log(1e-4, 1e-1), warmup=uniform(0, 0.3), method.rank=int(1, 16) or
        method=choice(lora, ssf); a third number in the brackets is the number of points of a grid. Once for each key.
    budget:
        Largest number of trained parameters of a candidate, without the head.
    recipe:
        A TOML file with any of the settings below; flags override it.
    supernet_epochs:
        Epochs of the supernet; by default five times those of the final training.
    supernet_lr:
        Learning rate of the supernet; by default half of `--lr`.
    resume:
        Continue an interrupted search from the folder; otherwise start again.
    json:
        Print the figures as JSON instead of sentences.
    trust_code:
        Run the code of a backbone py:FILE.py:NAME that a recipe file names.
    allow_download:
        Download a backbone hf:ID that a recipe file names.
    """
    if method is not None:
        get(parse_placed(method)[0][1].name)  # so that a mistyped name is said first
    if (space is None) == (budget is None):
        both = "" if space is None else ", not both"
        raise NothingToSearch(
            f'Say what is searched: --space "lr=log(1e-4, 1e-1)" for keys of the recipe, or --budget NUMBER for the'
            f" search of a method that offers one ({', '.join(searchable())}){both}."
        )
    named = {} if method is None else {"method": method}
    stated = {"backbone": "pocket_vit"} if recipe is None else {}
    asked = recipe_from(recipe, {**stated, **given, **named})
    trusted = {"trust_code": trust_code, "allow_download": allow_download}
    if space is not None:
        plan = validated(SearchPlan, nested(_PLAN, given).get("plan", {}), _PLAN)
        found = search_space(asked, Space.parse(_each(space), asked), plan, resume=resume, progress=not json, **trusted)
        return _answer(found.stopped, json, lambda: _of_space(found), lambda: _in_words(found))
    assert budget is not None
    outcome = run_search(
        asked,
        budget,
        evolution=validated(Evolution, nested(_EVOLUTION, given).get("evolution", {}), _EVOLUTION),
        supernet_epochs=supernet_epochs,
        supernet_lr=supernet_lr,
        resume=resume,
        show=False,
        **trusted,
    )
    return _answer(outcome.stopped, json, lambda: _figures(outcome), lambda: _sentences(outcome))


def _each(texts: Sequence[str]) -> list[str]:
    """One text for each key, also where several are joined with commas."""
    return [word for text in texts for word in split_list(text)]


def _answer(stopped: bool, json: bool, figures: Callable[[], dict[str, Any]], words: Callable[[], str]) -> int:
    """Print what was found; return the exit code."""
    if stopped:
        say_warning("stopped. Run the same command again to continue.")
        return INTERRUPTED
    if json:
        show.as_json(figures())
    else:
        show.console().print(Text(words()))
    return 0


def _of_space(outcome: SpaceSearchOutcome) -> dict[str, Any]:
    best, run = outcome.best, outcome.run
    assert best is not None and run is not None
    return {
        "trials": len(outcome.trials),
        **{state: sum(trial.state == state for trial in outcome.trials) for state in ("done", "pruned", "failed")},
        "best": {"trial": best.number, "values": best.values, "validation": best.score},
        "search": str(outcome.record),
        "recipe": str(outcome.recipe),
        **summary(run),
    }


def _in_words(outcome: SpaceSearchOutcome) -> str:
    figures, best, run = _of_space(outcome), outcome.best, outcome.run
    assert best is not None and run is not None
    counts = ", ".join(f"{figures[state]} {state}" for state in ("done", "pruned", "failed") if figures[state])
    return (
        f"{figures['trials']} trials ({counts}); the best is number {best.number}: {best.sentence()}\n"
        f"{_scores(run)}\n"
        f"adapter: {figures['adapter']}; all trials: {outcome.record}; to repeat it: vpeft train {outcome.recipe}"
    )


def _scores(run: RunOutcome) -> str:
    return ", ".join(
        f"{split} {given.sentence()}"
        for split, given in (("validation", run.result.val), ("test", run.test))
        if given is not None
    )


def _figures(outcome: SearchOutcome) -> dict[str, Any]:
    best = outcome.found[0]
    assert outcome.retrained is not None
    return {
        "candidates": len(outcome.found),
        "best": best.method.model_dump(mode="json"),
        "parameters": best.parameters,
        "inherited_score": best.score,
        "search": str(outcome.record),
        **summary(outcome.retrained),
    }


def _sentences(outcome: SearchOutcome) -> str:
    figures = _figures(outcome)
    retrained = outcome.retrained
    assert retrained is not None
    return (
        f"{figures['candidates']} candidates were scored; the best has {figures['parameters']:,} parameters and"
        f" scores {figures['inherited_score']:.4g} on the validation images with the supernet's weights.\n"
        f"{outcome.found[0].method!r}\n"
        f"Trained from the pre-trained weights: {_scores(retrained)}.\n"
        f"adapter: {figures['adapter']}; record: {figures['record']}; candidates: {figures['search']}"
    )


search = with_flags(
    _search, (*_PLAN, *_EVOLUTION, *(flag for flag in recipe_flags() if flag.path not in (("method",), ("also",))))
)
